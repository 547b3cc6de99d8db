"""
The program `deebert`. It lies beside the package because importing that loads torch, which takes seconds: here the
package is made but not run until a command is about to, so that help and usage errors come at once.
"""

import importlib.util
import sys


def main() -> int:
    name = "transformers_deebert"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = package
    from transformers_deebert import cli

    return cli.main(prepare=lambda: loader.exec_module(package))


if __name__ == "__main__":
    sys.exit(main())
