"""Data sets on many ranks: scattering, empty data sets, and images to try things on."""

from mnx.datasets.download import download as download_images
from mnx.datasets.empty import create_empty_dataset as create_empty_dataset
from mnx.datasets.images import IMAGES as IMAGES
from mnx.datasets.images import LabelledImages as LabelledImages
from mnx.datasets.images import load_images as load_images
from mnx.datasets.part import DatasetPart as DatasetPart
from mnx.datasets.scatter import DataSizeError as DataSizeError
from mnx.datasets.scatter import scatter_dataset as scatter_dataset
from mnx.datasets.scatter import scatter_index as scatter_index
from mnx.datasets.take import register_take as register_take
from mnx.datasets.take import take as take

__all__ = [
    'scatter_dataset',
    'scatter_index',
    'create_empty_dataset',
    'DataSizeError',
    'DatasetPart',
    'take',
    'register_take',
    'load_images',
    'LabelledImages',
    'IMAGES',
    'download_images',
]
