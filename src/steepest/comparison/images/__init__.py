"""Images of a comparison: from files and folders to pixels, a target and what was decided."""

from .image_set import Images, is_image_source, load_images
from .scaler import ImageScaler

__all__ = ["ImageScaler", "Images", "is_image_source", "load_images"]
