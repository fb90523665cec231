"""Why rollout and learner give the same tokens other probabilities: what the differences look like. Pure."""

from torch import Tensor

_SAME = 1e-3  # nats: rounding
_FEW, _MOST = 0.2, 0.98  # shares of the tokens


def diagnosis(new: Tensor, old: Tensor, first: Tensor) -> str:
    """Of tokens [M] that a rollout sampled with log-probs `old`, the learner giving them `new` and the model that both
    began as `first`: the likeliest of the ways to differ.

    A rollout that was left behind says what the first model says. One that truncates (top-k, top-p) and divides by what
    is left gives no token less than the learner. Where the experts of few tokens were chosen otherwise, most tokens are
    the same; where weights or their arithmetic differ, hardly any is.
    """
    apart = old - new
    same = apart.abs() <= _SAME
    share = float(same.float().mean())
    told = f"{float(apart.abs().mean()):.3g} nats a token in the mean, {float(apart.abs().max()):.3g} at most"
    if float((old - first).abs().mean()) <= _SAME < float((new - first).abs().mean()):
        return f"{told}: staleness: the rollout answers with the weights that it began with, not with this version's"
    if float((apart >= -_SAME).float().mean()) >= _MOST and float(apart.mean()) > _SAME:
        return (
            f"{told}: sampling: the rollout gives {1 - share:.0%} of the tokens more and none less, as one does that "
            "leaves tokens out (top-k, top-p) or sharpens (temperature) before it takes the log-probs"
        )
    if share >= 1 - _FEW:
        return (
            f"{told}: routes: {share:.0%} of the tokens are the same and few are far, as where a router that is near a "
            "tie sends them to other experts; ppo.routes=rollout sends the learner's where the rollout's went"
        )
    return (
        f"{told}: weights: only {share:.0%} of the tokens are the same; the rollout computes with other weights, or in "
        "another precision"
    )
