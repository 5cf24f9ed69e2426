"""Which image formats are read: those that Pillow decodes in the process, with sizes that are known before."""

# Pillow's names, and the suffixes that it registers for each (a test compares them). Not in the list, on purpose:
# EPS and WMF, since Pillow starts another program for them or asks Windows; BUFR, GRIB, HDF5 and MPEG, which it knows
# and cannot decode; IPTC, since it holds a picture of any other format; BLP and FITS, since what they hold has no size
# that is known before it is decoded.
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
