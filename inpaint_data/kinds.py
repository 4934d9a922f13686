"""What a file is, by its first bytes and never by a name."""

import re

# What begins a file of a kind that has one beginning. Those that are decoded, and those that people have instead.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0\x10\0\0\0CR", "a Canon raw file (CR2)"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"IIRO", "an Olympus raw file (ORF)"),
    (b"IIRS", "an Olympus raw file (ORF)"),
    (b"MMOR", "an Olympus raw file (ORF)"),
    (b"IIU\0", "a Panasonic raw file (RW2)"),
    (b"FUJIFILM", "a Fujifilm raw file (RAF)"),
    (b"FOVb", "a Sigma raw file (X3F)"),
    (b"\0MRM", "a Minolta raw file (MRW)"),
    (b"II\x1a\0\0\0HEAP", "a Canon raw file (CRW)"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?R", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (b"\0\x05\x16\x07", "what macOS keeps beside a file (AppleDouble)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the files with `git lfs pull`"),
)
_PORTABLE_MAP = re.compile(rb"P[1-7]\s")
_BRANDS = {  # of the container that MP4, HEIC and AVIF share
    b"avif": "avif", b"avis": "avif", b"crx ": "a Canon raw file (CR3)", b"qt  ": "a video (QuickTime)",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heic"),
}  # fmt: skip


def kind_of(data: bytes) -> str:
    """The name of a format of images, such as "jpeg", or what else the file is in words; "" where nobody knows."""
    if data[4:8] == b"ftyp":
        return _kind_of_container(data)
    if data[:4] == b"RIFF":
        return {b"AVI ": "a video (AVI)", b"WAVE": "sound (WAV)"}.get(data[8:12], "webp")
    for beginning, kind in _BEGINNINGS:
        if data.startswith(beginning):
            return kind
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "SVG"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, as a server sends in place of a picture; download it again"
    if start.startswith(b"<?xml"):
        return "XML, as a server sends in place of a picture; download it again"
    if start.startswith((b"{", b"[")):
        return "JSON, as a server sends in place of a picture; download it again"
    return "a portable map (PNM)" if _PORTABLE_MAP.match(data) else ""


def _kind_of_container(data: bytes) -> str:
    """By its brands: the main one, then those that it is compatible with, of which one names what is inside."""
    box = data[8 : min(max(16, int.from_bytes(data[:4], "big")), 256)]
    brands = [box[:4], *(box[at : at + 4] for at in range(8, len(box), 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    return "avif" if "avif" in kinds else kinds[0] if kinds else "a video (MP4)"
