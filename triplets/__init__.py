"""The contract between teacher and student: picture files, picture sources, triplets on disk."""

from triplets.cache import Cache
from triplets.dataset import TripletDataset
from triplets.errors import InputError, one_line
from triplets.format import DatasetError, Triplet
from triplets.images import (
    DecodedImage,
    ImageError,
    centre_crop,
    crop_and_resize,
    decode_image,
    encode_image,
    float_from_uint8,
    read_image,
    resize_shorter_side,
    uint8_from_float,
    write_image,
)
from triplets.sheet import contact_sheet, grid_sheet
from triplets.sources import (
    ImageFile,
    ImageFolder,
    ImageSet,
    ImageSource,
    NativeCrops,
    Skipped,
    SourceError,
    TFDSImages,
    load_images,
    open_source,
)
from triplets.split import in_test_split, test_files, training_files
from triplets.writer import TripletWriter

__all__ = [
    "Cache",
    "DatasetError",
    "DecodedImage",
    "ImageError",
    "ImageFile",
    "ImageFolder",
    "ImageSet",
    "ImageSource",
    "InputError",
    "NativeCrops",
    "Skipped",
    "SourceError",
    "TFDSImages",
    "Triplet",
    "TripletDataset",
    "TripletWriter",
    "centre_crop",
    "contact_sheet",
    "crop_and_resize",
    "decode_image",
    "encode_image",
    "float_from_uint8",
    "grid_sheet",
    "in_test_split",
    "load_images",
    "one_line",
    "open_source",
    "read_image",
    "resize_shorter_side",
    "test_files",
    "training_files",
    "uint8_from_float",
    "write_image",
]
