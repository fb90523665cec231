"""Who says which of a query's answers is better: the domain's rules, a model that is asked, and how far they agree."""
