import atexit
import contextlib
import os
import sys

from recipe.errors import BROKEN_PIPE, ERROR

status: int | str | None = ERROR  # of an exception that nobody catches


@atexit.register  # before all others, so that it is called after them
def _leave() -> None:
    """End the process here where torch is loaded: to take it, CUDA and captured graphs apart took up to four seconds,
    and the system frees all of it at once."""
    if "torch" in sys.modules:
        with contextlib.suppress(BrokenPipeError):  # whose reader has seen enough
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else ERROR if status else 0)


from recipe.cli import main  # noqa: E402 - what it imports may register functions, too
from recipe.cli.remedies import remedy  # noqa: E402
from recipe.plain_text import print_error  # noqa: E402
from recipe.training import unused_libraries  # noqa: E402

unused_libraries.one_config = True

try:
    try:
        status = main()
    except SystemExit as leaving:  # argparse, after --help or a wrong call
        status = leaving.code
    sys.stdout.flush()
except UnicodeEncodeError as error:  # of --help; `main` has caught its own
    print_error(str(remedy(error)))
    status = ERROR
except BrokenPipeError:  # `… --help | head`: the reader has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = BROKEN_PIPE
sys.exit(status)
