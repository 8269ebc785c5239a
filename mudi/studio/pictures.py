"""Pictures as the page gets them."""

import io

from PIL import Image, ImageOps

from mudi.studio.server import Reply

THUMBNAIL = 192  # px, the longest side
QUALITY = 90  # of photos, of which only the mask is written back


def png(image: Image.Image) -> Reply:
    """Return a picture as it is."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)  # it travels no further than this machine
    return Reply(file.getvalue(), "image/png")


def jpeg(image: Image.Image) -> Reply:
    """Return a picture to look at."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return Reply(file.getvalue(), "image/jpeg")


def thumbnail(image: Image.Image, side: int = THUMBNAIL) -> Reply:
    """Return a small copy, at most that long."""
    return jpeg(ImageOps.contain(image, (side, side)) if max(image.size) > side else image)
