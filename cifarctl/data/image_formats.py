"""Which image formats are read: those that Pillow itself decodes, and whose size is known before decoding."""

# Pillow's names, and the suffixes that it registers for each (a test compares them). Left out on purpose: EPS and WMF,
# since Pillow starts another program or calls Windows for them; BUFR, GRIB, HDF5 and MPEG, which it recognises but
# cannot decode; IPTC, since it contains a picture of any other format; BLP and FITS, since the size of their content is
# not known before decoding.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "DIB": (".dib",),
    "CUR": (".cur",),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "DDS": (".dds",),
    "FLI": (".fli", ".flc"),
    "FTEX": (".ftc", ".ftu"),
    "GBR": (".gbr",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "IM": (".im",),
    "IMT": (),
    "MCIDAS": (),
    "MSP": (".msp",),
    "PCD": (".pcd",),
    "PIXAR": (".pxr",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".bw", ".rgb", ".rgba"),
    "SPIDER": (),
    "SUN": (".ras",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "XVTHUMB": (),
}
FORMAT_OF_SUFFIX = {suffix: format for format, suffixes in FORMATS.items() for suffix in suffixes}


# Formats that are not read, by their first bytes; the error names them and says what to do.
_NOT_READ = {
    "PostScript": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "PDF": (b"%PDF",),
    "a Windows metafile": (b"\xd7\xcd\xc6\x9a", b"\x01\x00\x00\x00"),
    "SVG": (b"<svg", b"<?xml"),
    "HEIC": (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"),
    "AVIF": (b"ftypavif", b"ftypavis"),  # if Pillow was built without it
    "JPEG XL": (b"\xff\x0a", b"\x00\x00\x00\x0cJXL "),
    "FITS": (b"SIMPLE  =",),
    "HDF5": (b"\x89HDF",),
    "GRIB": (b"GRIB",),
    "BUFR": (b"BUFR",),
    "MPEG": (b"\x00\x00\x01\xb3", b"\x00\x00\x01\xba"),
    "BLP": (b"BLP1", b"BLP2"),
    "a damaged or rare kind of TIFF": (b"II*\x00", b"II+\x00", b"MM\x00*", b"MM\x00+"),
}
_STARTS_A_PROGRAM = ("PostScript", "a Windows metafile")


def why_not_read(start: bytes) -> str:
    """The reason why a file that starts with these bytes is not read, after every reader has refused it."""
    for name, signatures in _NOT_READ.items():
        if start.startswith(signatures) or start[4:12] in signatures:
            reason = ", since another program would have to be started" if name in _STARTS_A_PROGRAM else ""
            return f"{name}, which is not read{reason}: convert it to PNG"
    return "not an image in a known format"
