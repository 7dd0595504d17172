"""A lock for DeepSpeed's first compilation that ends with the process that holds it.

torch compiles DeepSpeed's C++ operations when they are first used, in the user's cache, while a file called `lock` is
there. A process that is killed meanwhile leaves the file, and every later one waits for it without end or a word.
"""

from __future__ import annotations

import fcntl
import os


class BuildLock:
    """What `torch.utils.file_baton.FileBaton` does, by a lock of the kernel's, which is gone when its process is.

    Args:
        path: of torch's file, which may have stayed from a killed process and is not looked at.
    """

    def __init__(self, path: str) -> None:
        self.file = os.open(f"{path}.held", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def try_acquire(self) -> bool:
        """Take the lock; False where another process has it."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        """Return when no other process has the lock."""
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.release()

    def release(self) -> None:
        """Give the lock back."""
        os.close(self.file)


def install() -> None:
    """Have torch compile under `BuildLock`."""
    from torch.utils import cpp_extension

    cpp_extension.FileBaton = BuildLock
