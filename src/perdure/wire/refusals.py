"""Turning a body that does not fit into the refusal that the hosted server would have sent.

msgspec decodes and validates in one pass, but its messages are its own. Only when it refuses, the body is decoded
without types and walked beside them, in document order, until the first fault; that fault is put into OpenAI's words.
Texts in `wire-reference` section 9 are recorded; the others follow their pattern.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import inspect

from perdure.errors import ApiError, InvalidRequest

T = TypeVar("T")

NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library "
    "correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
)
_NO_NEWLINE = r"(?!\n)"
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a decimal"),
    (str, "a string"),
    (list, "an array"),
    (dict, "an object"),
    (type(None), "null"),
)


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a request body; no body at all counts as `{}`. Raises InvalidRequest in the hosted server's words."""
    try:
        return decoder.decode(body or b"{}")
    except msgspec.ValidationError as error:
        refuse(body or b"{}", decoder.type, error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest(NOT_JSON) from None
    except RecursionError:
        raise InvalidRequest("The JSON body of your request is nested too deeply.") from None


def refuse(body: bytes, wanted: type, error: msgspec.ValidationError) -> NoReturn:
    """Raise the refusal for a body that msgspec did not take."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(NOT_JSON) from None
    walk(value, inspect.type_info(wanted), "")
    # The walk found nothing although msgspec did: say at least what msgspec said (a number out of range, say).
    raise InvalidRequest(f"Invalid request body: {error}.") from None


def walk(value: Any, wanted: inspect.Type, path: str) -> None:
    """Raise InvalidRequest at the first place where `value` is not what `wanted` asks for."""
    if isinstance(wanted, inspect.Metadata):
        walk(value, wanted.type, path)
        return
    union = wanted.types if isinstance(wanted, inspect.UnionType) else [wanted]
    choices = [_bare(one) for one in union]
    fitting = [choice for choice in choices if _same_kind(value, choice)]
    if not fitting:
        raise _wrong_type(value, choices, path)
    if isinstance(value, dict):
        _walk_object(value, fitting, path)
    elif isinstance(value, list):
        _walk_list(value, fitting[0], path)
    elif isinstance(value, str):
        _walk_string(value, fitting, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _walk_number(value, fitting[0], path)


def _bare(wanted: inspect.Type) -> inspect.Type:
    """Return a type without what only its JSON schema says of it."""
    return wanted.type if isinstance(wanted, inspect.Metadata) else wanted


def _same_kind(value: Any, wanted: inspect.Type) -> bool:
    if isinstance(wanted, inspect.AnyType):
        return True
    if isinstance(wanted, inspect.LiteralType):
        return isinstance(value, str)
    if isinstance(wanted, inspect.FloatType):
        return isinstance(value, int | float) and not isinstance(value, bool)
    kinds: dict[type, type] = {
        inspect.StrType: str,
        inspect.BoolType: bool,
        inspect.NoneType: type(None),
        inspect.ListType: list,
        inspect.DictType: dict,
        inspect.StructType: dict,
    }
    if isinstance(wanted, inspect.IntType):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kinds.get(type(wanted), object))


def _walk_object(value: dict[str, Any], fitting: list[inspect.Type], path: str) -> None:
    structs = [choice for choice in fitting if isinstance(choice, inspect.StructType)]
    if structs:
        _walk_struct(value, _chosen_struct(value, structs, path), path)
    elif isinstance(fitting[0], inspect.DictType):
        _walk_dict(value, fitting[0], path)


def _chosen_struct(value: dict[str, Any], structs: list[inspect.StructType], path: str) -> inspect.StructType:
    tag_field = structs[0].tag_field
    if tag_field is None:
        return structs[0]
    where = _join(path, tag_field)
    if tag_field not in value:
        raise missing_parameter(where)
    tag = value[tag_field]
    for struct in structs:
        if struct.tag == tag:
            return struct
    if not isinstance(tag, str):
        raise InvalidRequest(
            f"Invalid type for '{where}': expected a string, but got {_kind(tag)} instead.",
            param=where,
            code="invalid_type",
        )
    raise unsupported_value(where, tag, [str(struct.tag) for struct in structs])


def _walk_struct(value: dict[str, Any], struct: inspect.StructType, path: str) -> None:
    fields = {field.encode_name: field for field in struct.fields}
    for name, item in value.items():
        where = _join(path, name)
        if name in fields:
            walk(item, fields[name].type, where)
        elif name != struct.tag_field and struct.forbid_unknown_fields:
            raise InvalidRequest(f"Unknown parameter: '{where}'.", param=where, code="unknown_parameter")
    for name, field in fields.items():
        if field.required and name not in value:
            raise missing_parameter(_join(path, name))


def _walk_dict(value: dict[str, Any], wanted: inspect.DictType, path: str) -> None:
    if wanted.max_length is not None and len(value) > wanted.max_length:
        raise InvalidRequest(
            f"Invalid '{path}': too many properties. Expected an object with at most {wanted.max_length} properties, "
            f"but got an object with {len(value)} properties instead.",
            param=path,
            code="object_above_max_properties",
        )
    key_limit = wanted.key_type.max_length if isinstance(wanted.key_type, inspect.StrType) else None
    for key, item in value.items():
        if key_limit is not None and len(key) > key_limit:
            raise InvalidRequest(
                f"Invalid property name in '{path}': '{key[:32]}...' is too long. Expected a property name with "
                f"maximum length {key_limit}, but got a property name with length {len(key)} instead.",
                param=path,
                code="property_name_above_max_length",
            )
        walk(item, wanted.value_type, _join(path, key))


def _walk_list(value: list[Any], wanted: inspect.Type, path: str) -> None:
    if not isinstance(wanted, inspect.ListType):
        return
    if wanted.max_length is not None and len(value) > wanted.max_length:
        raise InvalidRequest(
            f"Invalid '{path}': array too long. Expected an array with maximum length {wanted.max_length}, "
            f"but got an array with length {len(value)} instead.",
            param=path,
            code="array_above_max_length",
        )
    if wanted.min_length is not None and len(value) < wanted.min_length:
        raise InvalidRequest(
            f"Invalid '{path}': empty array. Expected an array with minimum length {wanted.min_length}, "
            "but got an empty array instead.",
            param=path,
            code="empty_array",
        )
    for index, item in enumerate(value):
        walk(item, wanted.item_type, f"{path}[{index}]")


def _walk_string(value: str, fitting: list[inspect.Type], path: str) -> None:
    literals = [choice for choice in fitting if isinstance(choice, inspect.LiteralType)]
    for literal in literals:
        if value not in literal.values:
            raise unsupported_value(path, value, [str(one) for one in literal.values])
    wanted = fitting[0]
    if not isinstance(wanted, inspect.StrType):
        return
    if wanted.max_length is not None and len(value) > wanted.max_length:
        raise string_too_long(path, value, wanted.max_length)
    if wanted.min_length is not None and len(value) < wanted.min_length:
        raise InvalidRequest(
            f"Invalid '{path}': empty string. Expected a string with minimum length {wanted.min_length}, "
            "but got an empty string instead.",
            param=path,
            code="empty_string",
        )
    if wanted.pattern is not None and not re.search(wanted.pattern, value):
        raise InvalidRequest(
            f"Invalid '{path}': string does not match pattern. Expected a string that matches the pattern "
            f"'{wanted.pattern.removesuffix(_NO_NEWLINE)}'.",
            param=path,
            code="invalid_value",
        )


def _walk_number(value: float, wanted: inspect.Type, path: str) -> None:
    if not isinstance(wanted, inspect.IntType | inspect.FloatType):
        return
    kind = "integer" if isinstance(wanted, inspect.IntType) else "decimal"
    if wanted.ge is not None and value < wanted.ge:
        raise number_out_of_range(path, value, kind, "minimum", wanted.ge)
    if wanted.le is not None and value > wanted.le:
        raise number_out_of_range(path, value, kind, "maximum", wanted.le)


def number_out_of_range(path: str, value: float, kind: str, bound: str, limit: float) -> ApiError:
    """Return the refusal of a number; `kind` is integer or decimal, `bound` minimum or maximum."""
    side, sign, short = ("below", ">=", "min") if bound == "minimum" else ("above", "<=", "max")
    return InvalidRequest(
        f"Invalid '{path}': {kind} {side} {bound} value. Expected a value {sign} {limit:.15g}, "
        f"but got {value} instead.",
        param=path,
        code=f"{kind}_{side}_{short}_value",
    )


def string_too_long(path: str, value: str, limit: int) -> ApiError:
    """Return the refusal of a string over its limit."""
    return InvalidRequest(
        f"Invalid '{path}': string too long. Expected a string with maximum length {limit}, "
        f"but got a string with length {len(value)} instead.",
        param=path,
        code="string_above_max_length",
    )


def unsupported_value(path: str, value: str, supported: list[str]) -> ApiError:
    """Return the refusal of a value that is not in the list."""
    quoted = [f"'{one}'" for one in supported]
    serial = f"{', '.join(quoted[:-1])}, and {quoted[-1]}"
    listed = serial if len(quoted) > 2 else " and ".join(quoted)  # noqa: PLR2004  # the serial comma begins at three
    return InvalidRequest(
        f"Invalid value: '{value[:200]}'. Supported values are: {listed}.", param=path, code="invalid_value"
    )


def missing_parameter(path: str) -> ApiError:
    """Return the refusal of a body without something that it must have."""
    return InvalidRequest(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def _wrong_type(value: Any, choices: list[inspect.Type], path: str) -> ApiError:
    if not path:
        message = f"Invalid type for the request body: expected an object, but got {_kind(value)} instead."
        return InvalidRequest(message, code="invalid_type")
    names = list(dict.fromkeys(_expected(choice) for choice in choices if not isinstance(choice, inspect.NoneType)))
    expected = names[0]
    if len(names) > 1:
        bare = [names[0], *(re.sub("^an? ", "", name) for name in names[1:])]
        expected = f"one of {' or '.join(bare)}"
    return InvalidRequest(
        f"Invalid type for '{path}': expected {expected}, but got {_kind(value)} instead.",
        param=path,
        code="invalid_type",
    )


def _expected(wanted: inspect.Type) -> str:
    if isinstance(wanted, inspect.ListType):
        item = _bare(wanted.item_type)
        item = item.types[0] if isinstance(item, inspect.UnionType) else item
        return "an array of strings" if isinstance(item, inspect.StrType) else "an array of objects"
    names: dict[type, str] = {
        inspect.StrType: "a string",
        inspect.LiteralType: "a string",
        inspect.IntType: "an integer",
        inspect.FloatType: "a decimal",
        inspect.BoolType: "a boolean",
    }
    return names.get(type(wanted), "an object")


def _kind(value: Any) -> str:
    return next(name for kind, name in _KINDS if isinstance(value, kind))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
