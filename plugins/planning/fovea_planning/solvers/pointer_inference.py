"""Decodes orders of points with a trained pointer network, in NumPy: a step of it is too small for an engine.

Knows the weights of `models.pointer_net` by key, in both forms of its encoder. Slot 0 is the end, slot k point k - 1.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import erf, expit

from fovea.errors import InvalidOption

HEADS = 4
"""Attention heads of the encoder `attn`."""

Fits = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Slots chosen so far (b, t), all allowed slots (b, n + 1) → those that may follow."""

State = tuple[np.ndarray, np.ndarray]
"""Hidden and cell state (…, h) of the decoder."""


class PointerInference:
    """A pointer network ready to decode, from its state by key, float32."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights
        self._layers = sorted({key.split(".")[2] for key in weights if key.startswith("layers.layers.")}, key=int)

    def decode(
        self, points: np.ndarray, steps: int, *, visit_once: bool = False, fits: Fits | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest slots (b, t) of t steps, and all log-probabilities (b, t, n + 1); barred slots are -inf.

        Points are (b, n, 2). `visit_once` bars slots that were chosen, and the end; `fits` bars further slots by what
        was chosen so far. Where it bars all, the end stays.
        """
        encoded, fed, state = self._read(points)
        (batch, count), rows = encoded.shape[:2], np.arange(len(points))
        given = np.broadcast_to(self._weights["go"], (batch, fed.shape[2]))
        free = np.ones((batch, count), bool)
        free[:, 0] = not visit_once
        slots, log_probabilities = np.zeros((batch, 0), np.int64), []
        for _ in range(steps):
            state = self._step(given, state)
            allowed = free if fits is None else _or_end(fits(slots, free))
            logits = np.where(allowed, self._point(encoded[:, None], state[0][:, None])[:, 0], -np.inf)
            chosen = logits.argmax(1)
            log_probabilities.append(_log_softmax(logits))
            slots = np.concatenate((slots, chosen[:, None]), 1)
            given = fed[rows, chosen]
            if visit_once:
                free[rows, chosen] = False
        return slots, np.stack(log_probabilities, 1)

    def beam(self, points: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Orders of all points with the largest probability, by beam search that visits each point once.

        Visited slots and the end are barred before the softmax, so probabilities are over what is left. Returns slots
        (b, w, n), best first, and sums of log-probabilities (b, w).
        """
        encoded, fed, state = self._read(points)
        batch, count = points.shape[:2]
        rows, hidden = np.arange(batch)[:, None], (state[0][:, None], state[1][:, None])
        given, scores = np.broadcast_to(self._weights["go"], (batch, 1, fed.shape[2])), np.zeros((batch, 1), np.float32)
        free = np.ones((batch, 1, count + 1), bool)
        free[..., 0] = False
        slots = np.zeros((batch, 1, 0), np.int64)
        for _ in range(count):
            hidden = self._step(given, hidden)
            logits = np.where(free, self._point(encoded[:, None], hidden[0]), -np.inf)
            total = (scores[:, :, None] + _log_softmax(logits)).reshape(batch, -1)
            best = np.argsort(-total, axis=1, kind="stable")[:, : min(width, int(np.isfinite(total).sum(1).min()))]
            scores, parent, chosen = total[rows, best], best // (count + 1), best % (count + 1)
            slots = np.concatenate((slots[rows, parent], chosen[..., None]), 2)
            free = free[rows, parent]
            np.put_along_axis(free, chosen[..., None], values=False, axis=2)
            given, hidden = fed[rows, chosen], (hidden[0][rows, parent], hidden[1][rows, parent])
        return slots, scores

    def _read(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, State]:
        """Encode points: W1 e (b, n + 1, h), what the decoder is fed of each slot, and its first state (b, h)."""
        if points.ndim != 3 or points.shape[2] != 2:
            raise InvalidOption(f"points must be (batch, n, 2), not {points.shape}.", field="points")
        weights = self._weights
        end = np.broadcast_to(weights["end_in"], (len(points), 1, len(weights["end_in"])))
        if "embed.weight" not in weights:
            fed = np.concatenate((end, points), 1)
            hidden = cell = np.zeros((len(points), len(weights["W1.weight"])), np.float32)
            read = []
            for row in fed.swapaxes(0, 1):
                hidden, cell = self._step(row, (hidden, cell), "enc")
                read.append(hidden)
            return np.stack(read, 1) @ weights["W1.weight"].T, fed, (hidden, cell)
        x = np.concatenate((end, self._linear("embed", points)), 1)
        for layer in self._layers:
            x = self._attend(f"layers.layers.{layer}.", x)
        x = self._norm("layers.norm", x)
        mean = x.mean(1)
        return x @ weights["W1.weight"].T, x, (mean, np.zeros_like(mean))

    def _attend(self, layer: str, x: np.ndarray) -> np.ndarray:
        """One layer of self-attention and its perceptron, each after its norm: (b, m, h) → (b, m, h)."""
        (batch, count, width), weights = x.shape, self._weights
        packed = self._norm(layer + "norm1", x) @ weights[layer + "self_attn.in_proj_weight"].T
        packed = packed + weights[layer + "self_attn.in_proj_bias"]
        q, k, v = packed.reshape(batch, count, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
        chances = np.exp(_log_softmax(q @ k.swapaxes(2, 3) / np.float32(np.sqrt(width / HEADS))))
        mixed = (chances @ v).swapaxes(1, 2).reshape(batch, count, width)
        x = x + self._linear(layer + "self_attn.out_proj", mixed)
        inner = self._linear(layer + "linear1", self._norm(layer + "norm2", x))
        gelu: np.ndarray = inner * (1 + erf(inner / np.float32(np.sqrt(2)))) / 2
        return np.asarray(x + self._linear(layer + "linear2", gelu))

    def _point(self, encoded: np.ndarray, decoded: np.ndarray) -> np.ndarray:
        """Logits (b, w, n + 1) from W1 e (b, 1, n + 1, h) and decoder states (b, w, h)."""
        query = decoded @ self._weights["W2.weight"].T
        return np.asarray(np.tanh(encoded + query[:, :, None]) @ self._weights["v.weight"][0])

    def _step(self, x: np.ndarray, state: State, name: str = "dec") -> State:
        """One step of an LSTM: (…, i) and its state (…, h)."""
        hidden, cell = state
        gates = self._linear(name, x, "_ih_l0") + self._linear(name, hidden, "_hh_l0")
        taken, kept, fresh, shown = np.split(gates, 4, axis=-1)
        cell = expit(kept) * cell + expit(taken) * np.tanh(fresh)
        return expit(shown) * np.tanh(cell), cell

    def _linear(self, name: str, x: np.ndarray, suffix: str = "") -> np.ndarray:
        return np.asarray(x @ self._weights[f"{name}.weight{suffix}"].T + self._weights[f"{name}.bias{suffix}"])

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(1e-5))
        return np.asarray(scaled * self._weights[name + ".weight"] + self._weights[name + ".bias"])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), logits.dtype)


def _or_end(allowed: np.ndarray) -> np.ndarray:
    """The same, with the end where nothing else is allowed."""
    allowed = allowed.copy()
    allowed[~allowed.any(1), 0] = True
    return allowed
