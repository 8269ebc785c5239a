"""ICC profiles, made on the spot from their definition (ICC.1:2001-04), and what they mean.

Colours are XYZ relative to D50, as in a profile.
"""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3_PRIMARIES = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
ADOBE_PRIMARIES = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
ADOBE_GAMMA = 563 / 256
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def xyz(chromaticity: tuple[float, float]) -> np.ndarray:
    x, y = chromaticity
    return np.array([x / y, 1.0, (1 - x - y) / y])


def to_xyz(primaries: tuple, white: tuple[float, float] = D65) -> np.ndarray:
    """Return the matrix from linear RGB of those primaries and white to XYZ, adapted to D50."""
    columns = np.stack([xyz(primary) for primary in primaries], axis=1)
    columns = columns * np.linalg.solve(columns, xyz(white))
    gains = np.diag((BRADFORD @ D50) / (BRADFORD @ xyz(white)))
    return np.linalg.inv(BRADFORD) @ gains @ BRADFORD @ columns


def srgb_curve(encoded: np.ndarray) -> np.ndarray:
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def srgb_encoded(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def in_srgb(levels: np.ndarray, primaries: tuple, gamma: float | None) -> np.ndarray:
    """Return what levels (..., 3) in 0..255 of a space are in sRGB; gamma None is sRGB's curve."""
    encoded = np.asarray(levels) / 255
    linear = srgb_curve(encoded) if gamma is None else encoded**gamma
    matrix = np.linalg.inv(to_xyz(SRGB_PRIMARIES)) @ to_xyz(primaries)
    return 255 * srgb_encoded(linear @ matrix.T)


def rgb_profile(primaries: tuple, gamma: float | None = None) -> bytes:
    """Return a display's profile; gamma, a multiple of 1/256, or sRGB's curve."""
    matrix = to_xyz(primaries)
    columns = {f"{name}XYZ": _xyz(matrix[:, i]) for i, name in enumerate("rgb")}
    return _profile(
        "mntr", "RGB ", "XYZ ", {**columns, **{f"{c}TRC": _curve(gamma) for c in "rgb"}}
    )


def gray_profile(gamma: float) -> bytes:
    return _profile("mntr", "GRAY", "XYZ ", {"kTRC": _curve(gamma)})


def cmyk_profile(lightness_of_black: float) -> bytes:
    """Return a printer's profile in which only K counts: from white down to that L* in 0..100."""
    inks = np.indices((2, 2, 2, 2)).reshape(4, -1)
    lightness = np.where(inks[3] == 1, lightness_of_black, 100.0)
    lab = np.stack([lightness * 2.55, np.full(16, 128.0), np.full(16, 128.0)], axis=1)
    straight = bytes(range(256))
    table = struct.pack(">4sI4B", b"mft1", 0, 4, 3, 2, 0) + _fixed(np.eye(3).ravel())
    table += straight * 4 + np.rint(lab).astype(np.uint8).tobytes() + straight * 3
    return _profile("prtr", "CMYK", "Lab ", {"A2B0": table})


def _fixed(values: np.ndarray) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(float(v) * 65536) for v in values))


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve(gamma: float | None) -> bytes:
    if gamma is None:
        parts = np.array([2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045])
        return struct.pack(">4sIHH", b"para", 0, 3, 0) + _fixed(parts)
    return struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256)) + bytes(2)


def _profile(kind: str, space: str, connection: str, tags: dict[str, bytes]) -> bytes:
    description = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = {
        "desc": description,
        "wtpt": _xyz(D50),
        "cprt": b"text\0\0\0\0none\0\0\0\0",
        **tags,
    }
    offset, places, content = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        places += struct.pack(">4sII", name.encode(), offset + len(content), len(data))
        content += data
    body = struct.pack(">I", len(tags)) + places + content
    header = struct.pack(
        ">II4s4s4s4s12s4s", 128 + len(body), 0, b"\x02\x40\0\0", kind.encode(), space.encode(),
        connection.encode(), struct.pack(">6H", 2026, 1, 1, 0, 0, 0), b"acsp",
    )  # fmt: skip
    header += bytes(28) + _fixed(D50)
    return header.ljust(128, b"\0") + body
