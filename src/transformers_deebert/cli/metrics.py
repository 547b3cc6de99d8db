"""The metric of `--metric`."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..analysis.exit_table import ExitTable


def load_metric(name: str) -> Any:
    """
    A module of `evaluate` by its name, `None` for accuracy and F1, which need none.

    Raises:
        ValueError: for a metric that cannot be loaded.
    """
    from ..analysis.scores import EXACT

    if name in EXACT:
        return None
    import evaluate

    from ..messages import first_line

    try:
        return evaluate.load(name)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"`--metric` {name!r} cannot be loaded ({first_line(error)}): accuracy and f1 are always there."
        ) from error


def name_metric(name: str, module: Any, table: "ExitTable") -> tuple[str, Any]:
    """
    What `metric` and `score` of the analysis are to be.

    Raises:
        ValueError: for a module that returns several numbers of other names.
    """
    from ..analysis.scores import make_scores

    if module is None:
        return name, None
    found = list(make_scores(module, table.num_labels)(table.answers[:, -1], table.labels))
    if name not in found and len(found) > 1:
        raise ValueError(f"`--metric` {name!r} returns several numbers ({', '.join(found)}): choose another metric.")
    return (name if name in found else found[0]), module
