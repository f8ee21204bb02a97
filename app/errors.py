"""Every error a client can meet. Each class carries its HTTP status and its problem type (RFC 9457); one place renders them."""

from __future__ import annotations

from typing import ClassVar


class LongwaveError(Exception):
    """Base of all errors that are shown to people; `detail` says what was wrong and what was expected."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequestError(LongwaveError):
    """The request cannot be understood; `errors` names each field and what it should have been."""

    status = 422
    type = "invalid-request"
    title = "Invalid request"

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class FilterError(InvalidRequestError):
    """A filter that cannot be read, or that asks what the items cannot answer.

    `position` is the character it is about, counted from 1; `found` is what stands there, `expected` what could.
    """

    type = "invalid-filter"
    title = "Invalid filter"

    def __init__(self, position: int, found: str, expected: str, field: str = "") -> None:
        """`field` is where the filter stands in the request, if that is known."""
        message = f"The filter, at character {position}: found {found}, expected {expected}."
        super().__init__(f"{field}: {message}" if field else message, [{"field": field, "message": message}] if field else None)
        self.position = position
        self.found = found
        self.expected = expected


class NotFoundError(LongwaveError):
    """There is no such user, item or model."""

    status = 404
    type = "not-found"
    title = "Not found"


class ConflictError(LongwaveError):
    """The request does not fit what is there; `detail` says what that is."""

    status = 409
    type = "conflict"
    title = "Conflict"


class RefusedError(ConflictError):
    """A bundle cannot be verified, so it does not serve; `detail` says why, `signature` stands for its files."""

    def __init__(self, detail: str, signature: str = "") -> None:
        super().__init__(detail)
        self.signature = signature


class TooLargeError(LongwaveError):
    status = 413
    type = "too-large"
    title = "Request too large"


class UnavailableError(LongwaveError):
    """The service cannot answer now (storage away, not ready); the client may retry. What a write has done is said below."""

    status = 503
    type = "unavailable"
    title = "Service unavailable"
    retry_after_s = 1


class NotReadyError(UnavailableError):
    """This worker cannot serve yet, or not any more; others may."""

    type = "not-ready"
    title = "Not ready"


class StorageError(UnavailableError):
    """Redis did not answer, or not in time. A write may have been done nevertheless, of each user's events all or none: sent
    again with the same event ids (or Idempotency-Key) it stores nothing twice."""

    type = "storage-unavailable"
    title = "Storage unavailable"


class OverloadedError(UnavailableError):
    """More is waiting than can be answered in time; nothing was done."""

    type = "overloaded"
    title = "Overloaded"


class LateError(OverloadedError, StorageError):
    """It waited for its turn too long; nothing was done. Also a StorageError: lists then come from the fallback."""


class DamagedError(StorageError):
    """What is stored of one user is not what it should be; `detail` names the user and the key. Nothing was done (but where the
    attributes alone are damaged, events are stored), and nobody else is concerned. Waiting will not help, an erasure of the user
    will."""


class StorageRefusedError(StorageError):
    """Redis answered, and refused to write: it is full, read-only, or without its replicas. What it refused was not done; of
    several users' events it may have taken some."""


class StorageChangedError(StorageError):
    """Another server answers than before (a restart, a failover): it may have lost what was seen of the last one."""


class LayoutError(UnavailableError):
    """Redis holds users of a version that spreads them over other keys: not an outage, and waiting will not help."""

    type = "storage-layout"
    title = "Storage of another version"


class StorageAddressError(LongwaveError):
    """The address of Redis is none."""

    type = "storage-address"
    title = "Bad storage address"


class ClientGoneError(LongwaveError):
    """The client hung up before its request was whole; nobody reads the answer, but logs and metrics count it."""

    status = 499
    type = "client-gone"
    title = "Client closed the request"


class BundleError(LongwaveError):
    """A bundle is missing, damaged or of another format; the message names the file."""

    status = 500
    type = "bad-bundle"
    title = "Bad bundle"


class IndexDamagedError(LongwaveError):
    """The file of an index cannot be used; it is made again, and lists are exact meanwhile."""

    title = "Index damaged"


class DeviceError(LongwaveError):
    """The device that the settings demand is not there."""

    type = "device-unavailable"
    title = "Device unavailable"


class StateFormatError(LongwaveError):
    """Stored state bytes do not belong to this model or format; the state is rebuilt, never guessed."""

    type = "state-format"
    title = "State format"


class ArchiveError(LongwaveError):
    """The archive or the log cannot be read or written; the message names the file or the record."""

    type = "bad-archive"
    title = "Bad archive"


class ReportError(LongwaveError):
    """What an experiment's report was asked for cannot be told; the message names the option or the file, and what there is."""

    type = "bad-report"
    title = "Bad report"


class ImportFileError(LongwaveError):
    """A file to import cannot be read, or has rows that cannot be stored; the message names the file and the row."""

    type = "bad-import"
    title = "Bad import file"
