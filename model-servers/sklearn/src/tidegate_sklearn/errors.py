"""What can go wrong, split by whose fault it is."""


class RequestError(Exception):
    """The client's fault: the message says what is wrong with the request and what was expected.

    Attributes:
        status: the HTTP status to answer with, 400 to 499.
        allow: with status 405, the method that is allowed.
    """

    def __init__(self, message: str, status: int = 400, *, allow: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.allow = allow


class LoadError(Exception):
    """The model cannot be served: the message is for the one who deployed it."""


class ModelError(Exception):
    """The model failed, or gave what the protocol cannot carry; the message is safe to show to a client."""
