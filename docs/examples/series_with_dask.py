"""Read a DICOM series by Dask workers, print statistics of each image, write the maximum-intensity projection as PNG.

usage: series_with_dask.py xnat://HOST/projects/.../DICOM OUT.png [ADDRESS OF A SCHEDULER]
"""

import sys

import dask
import dask.array
import dask.bag
import fsspec
import numpy
import pydicom
from dask.distributed import Client, LocalCluster
from PIL import Image


def read(url):
    """Return one image and its place along the axis of the series."""
    with fsspec.open(url) as file:
        image = pydicom.dcmread(file)
    return image.pixel_array, float(image.ImagePositionPatient[2])


def statistics(url):
    """Return the place, the mean and the maximum of one image."""
    pixels, place = read(url)
    return place, float(pixels.mean()), int(pixels.max())


def lazy_volume(urls):
    """Return the series as an array of slices, rows and columns, of which each slice is read when it is needed."""
    pixels, _ = read(urls[0])
    slices = [dask.array.from_delayed(dask.delayed(read)(url)[0], pixels.shape, pixels.dtype) for url in urls]
    return dask.array.stack(slices)


def report(series, png, client):
    """Print the statistics, and write the projection along the rows of the images."""
    fs, path = fsspec.url_to_fs(series)
    urls = [fs.unstrip_protocol(name) for name in fs.ls(path, detail=False)]

    found = client.gather(client.map(statistics, urls))
    rows = sorted(zip(found, urls, strict=True))
    for (place, mean, most), _ in rows:
        print(f"{place:8.1f} mm  mean {mean:7.2f}  max {most}")

    bag = dask.bag.from_sequence(urls, npartitions=4)
    brightest = bag.map(statistics).topk(1, key=lambda row: row[2]).compute()
    print(f"the brightest voxel is at {brightest[0][0]:.1f} mm")

    projection = lazy_volume([url for _, url in rows]).max(axis=1).compute()
    scaled = projection / max(projection.max(), 1) * 255
    Image.fromarray(scaled.astype(numpy.uint8)).save(png)


if __name__ == "__main__":
    series, png, *scheduler = sys.argv[1:]
    if scheduler:
        with Client(*scheduler) as client:
            report(series, png, client)
    else:
        with LocalCluster(dashboard_address=None) as cluster, Client(cluster) as client:
            report(series, png, client)
