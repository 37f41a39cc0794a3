"""Fast weights of a neural memory: an MLP that is trained while it reads (Behrouz et al., 2024, section 3.1).

Reading, the gradient of its error in closed form, and the two recurrences of momentum and forgetting. Axes: n = batch ×
heads, m steps, c tokens of a step, d head width. Knows tensors only; projections and states are in `memory`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

FastWeights = list[Tensor]
"""Fast weights of one memory, each [n,...]: matrices [n,in,out], and before them gamma [n,d] where the MLP is wrapped
in a norm and a residual."""

_EPS = 1e-5


def read(weights: FastWeights, x: Tensor, *, wrapped: bool = False) -> Tensor:
    """Output of the memory for queries x [n,...,c,d]; the weights' axes between n and their own follow those of x."""
    matrices = weights[1:] if wrapped else weights
    out = _layers(matrices, x)[1][-1] @ matrices[-1]
    return x + _normalise(out)[0] * (weights[0].unsqueeze(-2) + 1) if wrapped else out


def errors(weights: FastWeights, k: Tensor, v: Tensor, *, wrapped: bool = False) -> Tensor:
    """Sum over d of the squared error of each key's value [n,m,c], with one set of weights [n,...] for all steps."""
    return (read([w.unsqueeze(1) for w in weights], k, wrapped=wrapped) - v).square().sum(-1)


def gradients(
    weights: FastWeights, k: Tensor, v: Tensor, rate: Tensor, *, mean: bool, wrapped: bool, clamp: float | None
) -> tuple[FastWeights, Tensor]:
    """Gradients of all steps at one set of weights, each token's scaled by its rate, summed over the tokens of a step.

    Args:
        weights: Each [n,...].
        k: Keys [n,m,c,d].
        v: Values [n,m,c,d].
        rate: theta [n,m,c].
        mean: The loss is the mean of squared errors over d, else their sum.
        wrapped: The MLP has a norm and a residual around it.
        clamp: Largest Frobenius norm of one token's gradient of one matrix, before its rate. Each is an outer product,
            so its norm is the product of two norms.

    Returns:
        Per weight [n,m,...]; and the squared error of each token, summed over d [n,m,c].
    """
    here = [w.unsqueeze(1) for w in weights]
    matrices = here[1:] if wrapped else here
    before, inputs = _layers(matrices, k)
    out, found = inputs[-1] @ matrices[-1], []
    if wrapped:
        normed, spread = _normalise(out)
        scale = here[0].unsqueeze(-2) + 1
        wrong = k + normed * scale - v
    else:
        wrong = out - v
    error = wrong * (2 / k.shape[-1] if mean else 2)
    if wrapped:
        token = error * normed
        found.append((token * _gradient_scale(token.norm(dim=-1), rate, clamp)[..., None]).sum(-2))
        error = _norm_gradient(error * scale, normed, spread)
    grads = []
    for layer in reversed(range(len(matrices))):
        a = inputs[layer]
        factor = _gradient_scale(a.norm(dim=-1) * error.norm(dim=-1), rate, clamp)
        grads.append((a * factor[..., None]).mT @ error)
        if layer:
            error = (error @ matrices[layer].mT) * _gelu_slope(before[layer - 1])
    return [*found, *reversed(grads)], wrong.square().sum(-1)


def recur(start: Tensor, added: Tensor, log_keep: Tensor) -> Tensor:
    """x_t = exp(log_keep_t) x_{t-1} + added_t for all steps at once.

    Args:
        start: x before the first step [n,...].
        added: [n,m,...].
        log_keep: Natural logarithm of what is kept [n,m]; at most 0.

    Returns:
        x after each step [n,m,...].
    """
    n, m = log_keep.shape
    between, since = _decay(log_keep)
    flat = between @ added.reshape(n, m, -1) + since * start.reshape(n, 1, -1)
    return flat.view(added.shape)


def linear_window(
    qkv: tuple[Tensor, Tensor, Tensor],
    rate: Tensor,
    base: Tensor,
    state: tuple[Tensor, Tensor],
    gates: tuple[Tensor | None, Tensor],
    *,
    mean: bool,
    clamp: float | None,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """A refresh window of a memory that is one matrix, token by token, without a matrix per token.

    Gradients are outer products k ⊗ E, so what token t reads, q M_t, is attention over the window's keys with the
    products of both recurrences as weights. The numbers are those of `gradients`, `recur` and `read`.

    Args:
        qkv: q, k, v, each [n,m,d].
        rate: theta [n,m].
        base: The matrix at which gradients are taken [n,d,d].
        state: Matrix and momentum before the window, each [n,d,d].
        gates: ln eta (None without momentum) and ln(1 - alpha), each [n,m].
        mean: As in `gradients`.
        clamp: As in `gradients`.

    Returns:
        Each token's reading once it is stored [n,m,d]; matrix and momentum behind the window; each token's squared
        error [n,m].
    """
    q, k, v = qkv
    matrix, moment = state
    wrong = k @ base - v
    error = wrong * (2 / k.shape[-1] if mean else 2)
    error = error * _gradient_scale(k.norm(dim=-1) * error.norm(dim=-1), rate, clamp)[..., None]
    both, since = _decay(gates[1])
    from_moment = last = None
    if gates[0] is not None:
        between, begun = _decay(gates[0])
        from_moment, both, last = both @ begun, both @ between, between[:, -1:]
    y = since * (q @ matrix) - (q @ k.mT * both) @ error
    after = since[:, -1:] * matrix - (k.mT * both[:, -1:]) @ error
    if from_moment is None or last is None:
        return y, (after, -k[:, -1:].mT @ error[:, -1:]), wrong.square().sum(-1)
    y = y + from_moment * (q @ moment)
    after = after + from_moment[:, -1:] * moment
    return y, (after, begun[:, -1:] * moment - (k.mT * last) @ error), wrong.square().sum(-1)


def _decay(log_keep: Tensor) -> tuple[Tensor, Tensor]:
    """Share left after step t of the input at step s [n,t,s], and of what was there before [n,t,1]."""
    m, total = log_keep.shape[1], log_keep.cumsum(-1)
    later = torch.ones(m, m, dtype=torch.bool, device=total.device).triu(1)
    between = (total[:, :, None] - total[:, None, :]).masked_fill(later, -torch.inf).exp()
    return between, total.exp()[..., None]


def _layers(matrices: Sequence[Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Pre-activations of the hidden layers, and the input of every layer."""
    before, inputs = [], [x]
    for matrix in matrices[:-1]:
        before.append(inputs[-1] @ matrix)
        inputs.append(functional.gelu(before[-1]))
    return before, inputs


def _normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """LayerNorm without parameters, and the standard deviation that it divided by."""
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + _EPS).sqrt()
    return centred / spread, spread


def _norm_gradient(error: Tensor, normed: Tensor, spread: Tensor) -> Tensor:
    """The gradient before a LayerNorm from the one behind it."""
    along = (error * normed).mean(-1, keepdim=True)
    return (error - error.mean(-1, keepdim=True) - normed * along) / spread


def _gelu_slope(z: Tensor) -> Tensor:
    """Derivative of the erf GELU: Φ(z) + z φ(z)."""
    below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return below + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _gradient_scale(norm: Tensor, rate: Tensor, clamp: float | None) -> Tensor:
    """Factor of a token's gradient: its rate, and what brings its norm down to `clamp`."""
    if clamp is None:
        return rate
    return rate * (clamp / norm.clamp(min=clamp))
