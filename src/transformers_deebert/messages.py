"""Notes and errors for people, each in one line on stderr."""

import re
import sys
from collections.abc import Iterable, Mapping


# Packages that `import transformers_deebert` does without, and the extra that brings them.
EXTRAS = {
    **dict.fromkeys(("datasets", "jinja2", "matplotlib", "numpy", "pyarrow", "scipy"), "analysis"),
    "accelerate": "train",
    **dict.fromkeys(("evaluate", "sklearn"), "evaluate"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
}


def note(text: str) -> None:
    """Writes one line to stderr. Results go to stdout, so that they can be piped."""
    sys.stderr.write(f"deebert: {text}\n")


def first_line(error: BaseException) -> str:
    """What an error says first: advice of transformers and datasets follows in lines of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def explain(error: BaseException, options: Mapping[str, str] | None = None) -> str:
    """
    An error in one line; for a package that is missing, the way to install it. Arguments are named by the `options`
    that they were given with: `held_out` by `--validation`.
    """
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is not None:
            return f"this needs more packages: pip install 'transformers-deebert[{extra}]' ({first_line(error)})"
    if isinstance(error, ValueError):  # ours, which may quote lines of the user's
        text = " ".join(str(error).split()) or type(error).__name__
        for name, option in (options or {}).items():
            text = text.replace(f"`{name}`", f"`{option}`")
        return text
    return first_line(error)


def listed(names: Iterable, most: int = 12) -> str:
    """Names in a message, quoted where they are more than a word, and not all of very many."""
    names = [str(name) if re.fullmatch(r"[\w.:/+-]+", str(name)) else repr(str(name)) for name in names]
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
