"""The version of the code that runs."""

import functools
import pathlib
import subprocess


@functools.cache
def commit() -> str:
    """Commit of the package's checkout, with '+changes' if files differ; '' outside of git.

    That of the first call in a process, as a checkout may move on while a command runs.
    """
    package = pathlib.Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", __file__):  # installed in another project
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except OSError:
        return ""
