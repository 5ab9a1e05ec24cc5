"""What each op is on an image of any size, in calls of Pillow; the ops of the library give the same bytes."""

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps


def _affine(picture, *coefficients):
    return picture.transform(picture.size, Image.Transform.AFFINE, tuple(map(float, coefficients)))


def _posterize(picture, bits):
    bits = int(bits)  # Pillow refuses 0 bits, which used to give black
    return ImageOps.posterize(picture, bits) if bits > 0 else Image.new("RGB", picture.size)


def _cutout(picture, side, center):
    """As the released code of DADA paints it, around a center (row, column)."""
    left, top = (int(max(0.0, float(middle - side / 2))) for middle in center[::-1])
    box = (left, top, min(picture.width, left + side), min(picture.height, top + side))
    picture = picture.copy()
    ImageDraw.Draw(picture).rectangle(box, (125, 123, 114))
    return picture


# (picture p, value v, center c) -> picture. Values are float32, and so are fractions in pixels.
PILLOW = {
    "Identity": lambda p, v, c: p,
    "ShearX": lambda p, v, c: _affine(p, 1, v, 0, 0, 1, 0),
    "ShearY": lambda p, v, c: _affine(p, 1, 0, 0, v, 1, 0),
    "TranslateX": lambda p, v, c: _affine(p, 1, 0, v * p.width, 0, 1, 0),
    "TranslateY": lambda p, v, c: _affine(p, 1, 0, 0, 0, 1, v * p.height),
    "Rotate": lambda p, v, c: p.rotate(float(v)),
    "AutoContrast": lambda p, v, c: ImageOps.autocontrast(p),
    "Invert": lambda p, v, c: ImageOps.invert(p),
    "Equalize": lambda p, v, c: ImageOps.equalize(p),
    "Solarize": lambda p, v, c: ImageOps.solarize(p, float(v)),
    "Posterize": lambda p, v, c: _posterize(p, v),
    "Contrast": lambda p, v, c: ImageEnhance.Contrast(p).enhance(float(v)),
    "Color": lambda p, v, c: ImageEnhance.Color(p).enhance(float(v)),
    "Brightness": lambda p, v, c: ImageEnhance.Brightness(p).enhance(float(v)),
    "Sharpness": lambda p, v, c: ImageEnhance.Sharpness(p).enhance(float(v)),
    "Cutout": lambda p, v, c: _cutout(p, v * p.width, c) if v > 0 else p,
    "FlipLR": lambda p, v, c: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "FlipUD": lambda p, v, c: p.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "Rotate90": lambda p, v, c: p.transpose(Image.Transpose.ROTATE_90),
    "Blur": lambda p, v, c: p.filter(ImageFilter.BLUR),
    "Smooth": lambda p, v, c: p.filter(ImageFilter.SMOOTH),
    "TranslateXAbs": lambda p, v, c: _affine(p, 1, 0, v, 0, 1, 0),
    "TranslateYAbs": lambda p, v, c: _affine(p, 1, 0, 0, 0, 1, v),
    "CutoutAbs": lambda p, v, c: _cutout(p, v, c),
    "Posterize2": lambda p, v, c: _posterize(p, v),
}
