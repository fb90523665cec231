"""The actors of the PPO graph, each an ordinary class that tests use without Ray; `rlhf.graph` puts them on Ray."""
