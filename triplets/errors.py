"""The base of every error that means: what the user gave cannot be used."""


class InputError(ValueError):
    """Something given from outside cannot be used; the message is one sentence that says why.

    The message ends with a full stop. Commands print it without a traceback; every other exception
    is a defect of ours.
    """


def one_line(error: BaseException) -> str:
    """The reason that an exception gives, to stand within a sentence: one line, no full stop.

    The operating system's reason if there is one, else the first line of the message, else the name
    of the exception.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(reason.strip().partition("\n")[0].split())
    return line.rstrip(".") or type(error).__name__


def is_utf8(name: str) -> bool:
    """Whether a name is text: file names may hold any bytes, and JSON halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
