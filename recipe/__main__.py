import os
import sys

from recipe.cli import main
from recipe.cli.remedies import remedy
from recipe.errors import BROKEN_PIPE, ERROR
from recipe.plain_text import print_error

try:
    try:
        status: int | str | None = main()
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
