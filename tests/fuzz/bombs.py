"""Inputs that are small for what they ask: MessagePack and JSON that made other decoders recurse, swell or hang (R72).

Made by code, since many are large. All are to be refused, none may cost more than its own size.
"""

from collections.abc import Mapping

_BIG = b"\xff\xff\xff\xff"
_DEEP = 100_000

MSGPACK_BOMBS: Mapping[str, bytes] = {
    "lists 100,000 deep": b"\x91" * _DEEP + b"\xc0",
    "lists 100,000 deep, unclosed": b"\x91" * _DEEP,
    "maps 50,000 deep": b"\x81\xa1a" * (_DEEP // 2) + b"\xc0",
    "lists 17 deep": b"\x91" * 17 + b"\xc0",
    "a list of four thousand million": b"\xdd" + _BIG,
    "a map of four thousand million": b"\xdf" + _BIG,
    "bytes of four thousand million": b"\xc6" + _BIG,
    "text of four thousand million": b"\xdb" + _BIG,
    "an extension of four thousand million": b"\xc9" + _BIG + b"\x05",
    "a list of 65,535 with one": b"\xdc\xff\xff\x01",
    "nested headers that each claim all": (b"\xdd" + _BIG) * 1_000,
    "nested headers that each claim a million": b"\xdd\x00\x0f\xff\xff" * 1_000,
    "a list of 65,537": b"\xdd\x00\x01\x00\x01" + b"\xc0" * 65_537,
    "nil a million times": b"\xdd\x00\x0f\xff\xff" + b"\xc0" * 0xFFFFF,
    "a list of lists, each claiming more": b"\xdc\xff\xff" + b"\xdc\xff\xff" * 20_000,
    "extension": b"\xd4\x01\x00",
    "time stamp": b"\xd6\xff\x00\x00\x00\x00",
    "time stamp beyond all years": b"\xc7\x0c\xff\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff",
    "nan": b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "infinity": b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    "float": b"\xca\x3f\x80\x00\x00",
    "integer above 63 bits": b"\xcf" + b"\xff" * 8,
    "integer spelled too long": b"\xcd\x00\x01",
    "length spelled too long": b"\xd9\x01a",
    "duplicate key": b"\x82\xa1a\x01\xa1a\x02",
    "keys out of order": b"\x82\xa1b\x01\xa1a\x02",
    "integer as key": b"\x81\x01\x01",
    "list as key": b"\x81\x90\x01",
    "map as key": b"\x81\x80\x01",
    "invalid utf-8": b"\xa2\xff\xfe",
    "surrogate": b"\xa3\xed\xa0\x80",
    "surrogate as key": b"\x81\xa3\xed\xa0\x80\x01",
    "never used byte": b"\xc1",
    "rest behind the value": b"\xc0\xc0",
    "nothing": b"",
}

JSON_BOMBS: Mapping[str, bytes] = {
    "lists 100,000 deep": b"[" * _DEEP + b"]" * _DEEP,
    "lists 100,000 deep, unclosed": b"[" * _DEEP,
    "objects 50,000 deep": b'{"a":' * (_DEEP // 2) + b"1" + b"}" * (_DEEP // 2),
    "deep parameters": b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + b"[" * 30 + b"]" * 30 + b"}",
    "an integer of a million digits": b'{"id":' + b"9" * 1_000_000 + b"}",
    "an integer of 4,301 digits": b"9" * 4_301,
    "a fraction of a million digits": b"0." + b"1" * 1_000_000,
    "an exponent": b"1e999999999",
    "nan": b'{"id":NaN}',
    "infinity": b"-Infinity",
    "duplicate key": b'{"jsonrpc":"2.0","method":"a","method":"b"}',
    "duplicate key by escape": b'{"a":1,"\\u0061":1}',
    "a hundred thousand equal keys": b"{" + b",".join([b'"a":1'] * 100_000) + b"}",
    "keys with equal ends": b"{" + b",".join(b'"%d":0' % number for number in range(50_000)) + b"}",
    "a batch of 100,000 numbers": b"[" + b",".join([b"1"] * 100_000) + b"]",
    "a batch of 101 calls": b"[" + b",".join([b'{"jsonrpc":"2.0","id":1,"method":"x"}'] * 101) + b"]",
    "escapes that grow": b'"' + b"\\u00e9" * 100_000 + b'"',
    "lone surrogate": b'{"method":"\\ud800"}',
    "surrogate in bytes": b'"\xed\xa0\x80"',
    "invalid utf-8": b'"\xff\xfe"',
    "utf-16": '{"a":1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "zero byte": b'{"a":"\x00"}',
    "white space": b" " * 1_000_000,
    "a text that does not end": b'"' + b"\\" * 100_001,
    "nothing": b"",
}
"""Texts of which each is refused as a whole, or call by call."""
