"""The remedy for what the operating system refuses, as one line for a user."""

from __future__ import annotations

import errno
import os

from recipe.plain_text import UTF8_REMEDY, locale_name

# What the operating system refuses, and what a user can do about it.
REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, then run it again",
    errno.EDQUOT: "the disk quota is used up: free some space, then run it again",
    errno.EACCES: "no permission: choose another folder with --work, or mend its owner (ls -ld)",
    errno.EPERM: "not permitted: choose another folder with --work, or mend its owner (ls -ld)",
    errno.EEXIST: "something else stands where a folder must be: move it away, or choose another folder with --work",
    errno.ELOOP: "a link points to itself: mend it, or choose another folder with --work",
    errno.ENAMETOOLONG: "the name is too long for a file: choose a shorter RUN or --work",
    errno.ENOTDIR: "a file stands where a folder must be: move it away, or choose another folder with --work",
    errno.EISDIR: "a folder stands where a file must be: move it away, or choose another folder with --work",
    errno.EROFS: "the file system is read-only: choose another folder with --work",
}


def remedy(error: BaseException | None) -> str | None:
    """The remedy for an error of the operating system or the output, also one that a library wrapped in its own."""
    seen: list[BaseException] = []  # some libraries' errors go in circles
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in REMEDIES:
            denied = error.errno in (errno.EACCES, errno.EPERM) and "RECIPE_COMMIT" in os.environ  # set by the images
            return f"{error.filename or 'writing'}: {_another_user() if denied else REMEDIES[error.errno]}"
        if isinstance(error, UnicodeEncodeError):
            character = error.object[error.start]
            if os.environ.get("PYTHONIOENCODING"):
                return f"the output, in {error.encoding}, cannot show {character!a}: set PYTHONIOENCODING=utf-8"
            return f"{error.encoding}, of the locale ({locale_name()}), has no {character!a}: {UTF8_REMEDY}"
        text = str(error)
        if "No space left on device" in text or "os error 28" in text:
            return f"writing: {REMEDIES[errno.ENOSPC]}"
        error = error.__cause__ or error.__context__
    return None


def _another_user() -> str:
    """The remedy where a container's user may not write: bare `docker compose` does not know who calls it."""
    return (
        f"no permission for uid {os.getuid()} of this container: write RECIPE_UID=… and RECIPE_GID=… of the folder's "
        f"owner (id -u, id -g) into .env, or call docker/compose.sh, which knows them"
    )
