"""Methods as declared: typed arguments, decoded strictly, and described for people and programs.

Annotations are ``int``, ``str``, ``bytes``, ``bool``, ``Value``, ``list[T]``, ``dict[str, T]``, ``T | None``,
and ``Annotated[T, msgspec.Meta(...)]``, whose ``title`` names the type in descriptions (``account``, ``amount``).
Type names read ``int``, ``text``, ``list<amount>``, ``map<text>``; a trailing ``?`` means that nil is accepted.
"""

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Union, cast, get_args, get_origin

import msgspec

from consensus.ledger.codec import INTEGER_MAX, Limits, Value, decode_untrusted
from consensus.ledger.errors import LocalError, PeerError, Revert
from consensus.ledger.transaction import TRANSACTION_BYTES_MAX

_PLAIN = {int: "int", str: "text", bytes: "bytes", bool: "bool", type(None): "nil"}
_INTEGER = Annotated[int, msgspec.Meta(le=INTEGER_MAX)]
_LIMITS = Limits(bytes_max=TRANSACTION_BYTES_MAX)
_record_encoder = msgspec.msgpack.Encoder(order="sorted")
_any_encoder = msgspec.msgpack.Encoder(order="deterministic")
_any_decoder = msgspec.msgpack.Decoder()


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a method; ``default`` says nothing when the argument is required.

    ``limits`` holds what is declared of ``min`` and ``max`` (integers), ``minLength`` and ``maxLength``
    (text, bytes, list, map) and ``pattern`` (text).
    """

    name: str
    type: str
    is_required: bool
    default: Value
    limits: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Method:
    """One declared method of a contract, with what is needed to call it."""

    name: str
    is_query: bool
    doc: str
    arguments: tuple[Argument, ...]
    returns: str
    function: Callable[..., object]
    struct: type[msgspec.Struct]
    decoder: "msgspec.msgpack.Decoder[msgspec.Struct]"
    holds_values: bool

    def decode_arguments(self, data: bytes) -> tuple[Any, ...]:
        """Return the arguments in declared order from the canonical encoding of a map name → value.

        Raises:
            Revert: ``bad_arguments`` for anything but the declared names and types in canonical form.
        """
        try:
            if self.holds_values:
                decode_untrusted(data, _LIMITS)
            record = self.decoder.decode(data)
            if not self.holds_values and _record_encoder.encode(record) != data:
                # Either not canonical, or an argument was given although it equals its default.
                _check_canonical(data)
        except (msgspec.MsgspecError, PeerError, ValueError, OverflowError) as error:
            raise Revert("bad_arguments", f"{self.name}: {error}") from None
        return msgspec.structs.astuple(record)


def _check_canonical(data: bytes) -> None:
    if _any_encoder.encode(_any_decoder.decode(data)) != data:
        raise Revert("bad_arguments", "not the canonical encoding of the arguments")


def compile_method(function: Callable[..., object]) -> Method:
    """Return the method for a function that ``@method`` or ``@query`` marked.

    Raises:
        LocalError: ``contract_refused`` for a signature that users could not call.
    """
    name = function.__name__
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) < 2:
        raise LocalError("contract_refused", f"{name} must take self and context")
    arguments: list[Argument] = []
    fields: list[Any] = []
    for parameter in parameters[2:]:
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise LocalError("contract_refused", f"{name}: {parameter.name} must be a plain argument")
        is_required = parameter.default is inspect.Parameter.empty
        annotation = _bounded(parameter.annotation, f"{name}: {parameter.name}")
        default = None if is_required else parameter.default
        arguments.append(
            Argument(parameter.name, type_name(parameter.annotation), is_required, default, limits_of(annotation))
        )
        fields.append((parameter.name, annotation) if is_required else (parameter.name, annotation, default))
    struct = msgspec.defstruct(name, fields, frozen=True, forbid_unknown_fields=True, omit_defaults=True)
    returns = inspect.signature(function).return_annotation
    return Method(
        name=name,
        is_query=function.__dict__["kind"] == "query",
        doc=inspect.cleandoc(function.__doc__ or ""),
        arguments=tuple(arguments),
        returns="value" if returns is inspect.Signature.empty else type_name(returns),
        function=function,
        struct=struct,
        decoder=msgspec.msgpack.Decoder(struct),
        holds_values=any(_holds_value(parameter.annotation) for parameter in parameters[2:]),
    )


def type_name(annotation: object) -> str:
    """Return how descriptions spell a type; ``value`` for what has no narrower name."""
    if annotation is None:
        return "nil"
    if isinstance(annotation, type) and annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        titles = [meta.title for meta in parts[1:] if isinstance(meta, msgspec.Meta) and meta.title]
        return titles[-1] if titles else type_name(parts[0])
    if origin is list:
        return f"list<{type_name(parts[0])}>"
    if origin is dict:
        return f"map<{type_name(parts[1])}>"
    if origin in (Union, types.UnionType) and len(parts) == 2 and type(None) in parts:
        inner = next(part for part in parts if part is not type(None))
        return type_name(inner) + "?"
    return "value"


def limits_of(annotation: object) -> dict[str, int | str]:
    """Return the bounds that ``msgspec.Meta`` puts on a type itself, not on what is inside it."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((limits_of(part) for part in get_args(annotation) if part is not type(None)), {})
    names = {"ge": "min", "le": "max", "min_length": "minLength", "max_length": "maxLength", "pattern": "pattern"}
    metas = [part for part in get_args(annotation)[1:] if isinstance(part, msgspec.Meta)]
    found = {name: getattr(meta, field) for meta in metas for field, name in names.items()}
    return {name: limit for name, limit in found.items() if limit is not None and limit != INTEGER_MAX}


def _holds_value(annotation: object) -> bool:
    return "value" in type_name(annotation) or annotation in (dict, list)


def _bounded(annotation: Any, place: str) -> Any:
    """Return the annotation as msgspec takes it: integers bounded to 64 bits signed, ``Value`` as anything."""
    if annotation is int:
        return _INTEGER
    if annotation in (str, bytes, bool, None, type(None)):
        return annotation
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        metas = [part for part in parts[1:] if isinstance(part, msgspec.Meta)]
        if parts[0] is int:
            has_bound = any(meta.le is not None or meta.lt is not None for meta in metas)
            return annotation if has_bound else Annotated[(annotation, msgspec.Meta(le=INTEGER_MAX))]
        return Annotated[(_bounded(parts[0], place), *metas)]
    if origin is list and len(parts) == 1:
        return list[_bounded(parts[0], place)]  # type: ignore[misc]
    if origin is dict and (parts[0] is str or get_args(parts[0])[:1] == (str,)):
        return dict[parts[0], _bounded(parts[1], place)]  # type: ignore[valid-type, misc]
    if origin in (Union, types.UnionType) and type(None) in parts and len(parts) == 2:
        inner = next(part for part in parts if part is not type(None))
        return Union[_bounded(inner, place), None]  # noqa: UP007
    if annotation == cast(object, Value):
        return Any
    raise LocalError("contract_refused", f"{place} has a type that arguments cannot have: {annotation!r}")
