"""The one exception for bad input from outside: files, folders, options."""


class BadInput(ValueError):
    """A file, folder or setting that came from outside cannot be used as it is.

    The message is one sentence: which file or option, what was expected, what came instead, and
    what to do about it. The commands print it after `symerge: error: ` and exit with code 2, so it
    never needs a traceback to be understood.
    """
