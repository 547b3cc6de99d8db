"""How far the exits' confidence can be trusted, and temperatures that mend it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..checks import check_count, renamed_arguments
from .exit_table import ExitTable


BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are looked at


@dataclass(frozen=True)
class ReliabilityBin:
    """
    The rows that an exit answers with about one confidence.

    Args:
        low, high (`float`): Bounds of the confidence, the highest probability: above `low`, up to `high`.
        rows (`int`): How many rows there are.
        confidence (`float`): Their mean confidence.
        accuracy (`float`): Share of them that is answered right.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class TemperatureFit:
    """
    A temperature for each off-ramp, and what it changes on other rows than those that it was fitted on.

    Args:
        temperatures (`tuple[float, ...]`): What the logits of each off-ramp are to be divided by.
        error_before, error_after (`tuple[float, ...]`): Expected calibration error of each off-ramp.
        loss_before, loss_after (`tuple[float, ...]`):
            Mean cross-entropy of each off-ramp, nats, over the rows where its logits are finite; 0 without any.
        fitted_rows, read_rows (`int`): How many rows were fitted on, and read on.
    """

    temperatures: tuple[float, ...]
    error_before: tuple[float, ...]
    error_after: tuple[float, ...]
    loss_before: tuple[float, ...]
    loss_after: tuple[float, ...]
    fitted_rows: int
    read_rows: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers and lists, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def reliability_bins(table: ExitTable, layer: int, bins: int = BINS) -> list[ReliabilityBin]:
    """
    Confidence and accuracy of one exit's answers (Guo et al., 2017, section 2), for a reliability diagram.

    Args:
        table ([`ExitTable`]): Of labelled rows.
        layer (`int`): That the exit stands behind; L is the model's own head.
        bins (`int`, *optional*, defaults to 15):
            Number of bins of equal width between 0 and 1; empty ones are left out.

    Raises:
        ValueError: for a layer or a number of bins that there cannot be.
    """
    if layer not in table.exit_layers:
        raise ValueError(f"`layer` must be one of {', '.join(map(str, table.exit_layers))}, got {layer!r}.")
    bins = check_count("bins", bins)
    logits, labels = finite_rows(table, layer)
    confidence = np.exp(-cross_entropies(logits, logits.argmax(-1)))
    right = logits.argmax(-1) == labels
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for index in np.unique(number):
        inside = number == index
        found.append(
            ReliabilityBin(
                low=float(index / bins),
                high=float((index + 1) / bins),
                rows=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                accuracy=float(right[inside].mean()),
            )
        )
    return found


def expected_calibration_error(table: ExitTable, layer: int, bins: int = BINS) -> float:
    """
    Mean distance between confidence and accuracy over the bins of [`reliability_bins`], weighted by their rows (Guo et
    al., 2017, equation 3): a share of 1, 0 is best.
    """
    found = reliability_bins(table, layer, bins)
    rows = sum(one.rows for one in found)
    return sum(one.rows * abs(one.confidence - one.accuracy) for one in found) / rows if rows else 0.0


@renamed_arguments(reading="evaluate_on")
def fit_temperatures(table: ExitTable, evaluate_on: ExitTable | None = None, seed: int = 0) -> TemperatureFit:
    """
    Temperature scaling of the off-ramps (Guo et al., 2017, section 4.2): for each the temperature between 0.05 and 20
    of least cross-entropy. It changes no answer of an off-ramp, but its entropy: one threshold then means more nearly
    the same at every layer. The model's own head is left as it is.

    Args:
        table ([`ExitTable`]): Rows that the model was not trained on; one random half is fitted on.
        evaluate_on ([`ExitTable`], *optional*): Other rows to evaluate on; all of `table` is then fitted on.
        seed (`int`, *optional*, defaults to 0): Of the split; the same as that of [`pick_threshold`].

    Returns:
        [`TemperatureFit`]: `table.with_temperatures(fit.temperatures)` is what the model would then answer, and a
        threshold that is picked on that table takes the temperatures along.

    Raises:
        ValueError: for fewer than four rows.
    """
    if len(table) < 4:
        raise ValueError(f"`table` has {len(table)} rows, which is too few to fit on: collect more.")
    if evaluate_on is not None:
        table.check_alike(evaluate_on)
    fitting, evaluate_on = table.split(seed) if evaluate_on is None else (table, evaluate_on)
    ramps = table.exit_layers[:-1]
    old = np.ones(len(ramps)) if table.temperatures is None else np.asarray(table.temperatures)
    temperatures = tuple(
        float(before * best_temperature(*finite_rows(fitting, layer)))
        for before, layer in zip(old, ramps, strict=True)
    )
    evaluate_on = evaluate_on.with_score("entropy")  # no matter here, and stored scores would not follow the logits
    after = evaluate_on.with_temperatures(temperatures)

    def losses(one: ExitTable) -> tuple[float, ...]:
        of_rows = [cross_entropies(*finite_rows(one, layer)) for layer in ramps]
        return tuple(float(values.mean()) if len(values) else 0.0 for values in of_rows)

    return TemperatureFit(
        temperatures=temperatures,
        error_before=tuple(expected_calibration_error(evaluate_on, layer) for layer in ramps),
        error_after=tuple(expected_calibration_error(after, layer) for layer in ramps),
        loss_before=losses(evaluate_on),
        loss_after=losses(after),
        fitted_rows=len(fitting),
        read_rows=len(evaluate_on),
    )


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least mean cross-entropy, for logits `(rows, labels)`; 1 without rows."""
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(cross_entropies(logits / np.exp(log_temperature), labels).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded").x))


def finite_rows(table: ExitTable, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits `(rows, labels)` of one exit and labels, of the rows whose logits are finite."""
    logits = table.logits[:, table.exit_layers.index(layer)].astype(np.float64)
    finite = np.isfinite(logits).all(-1)
    return logits[finite], table.labels[finite]


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Nats, `(rows,)`."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
