"""A zoo of image files, made here: each has its expected pixels, or its expected rejection."""

import contextlib
import io
import os
import pickle
import resource
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tetravit.data import decode as decode_module
from tetravit.data import decode as decoding
from tetravit.data.decode import MAX_PIXELS, BadImage, decode


def smooth(height=48, width=64):
    """A picture without sharp edges, which JPEG keeps well: uint8 (H, W, 3)."""
    y, x = np.mgrid[:height, :width]
    planes = (x * 255 / (width - 1), y * 255 / (height - 1), 128 + 100 * np.sin(x / 9) * np.cos(y / 7))
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def encode(array, kind, mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image = image.convert(mode) if mode else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data, **options):
    """Decoded as (H, W, 3) int."""
    out = decode(data, **options)
    assert out.dtype == torch.uint8
    assert out.shape[0] == 3
    return out.permute(1, 2, 0).int().numpy()


def png(width, height, bits, colour, rows):
    """A PNG from raw rows (bytes): Pillow cannot write 16-bit colour."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


RGB = smooth()
GRAY = RGB[..., 2]
ICC = b"\0" * 128  # not a valid profile; must not matter


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        pytest.param(encode(RGB, "PNG"), RGB, 0, id="png"),
        pytest.param(encode(RGB, "PNG", icc_profile=ICC), RGB, 0, id="png with a profile"),
        pytest.param(encode(RGB, "PNG") + b"garbage" * 99, RGB, 0, id="png with garbage behind"),
        pytest.param(encode(GRAY, "PNG"), GRAY[..., None], 0, id="gray png"),
        pytest.param(encode(RGB, "BMP"), RGB, 0, id="bmp"),
        pytest.param(encode(RGB, "PPM"), RGB, 0, id="ppm"),
        pytest.param(encode(RGB, "TGA"), RGB, 0, id="tga"),
        pytest.param(encode(RGB, "TIFF"), RGB, 0, id="tiff"),
        pytest.param(encode(RGB, "WEBP", lossless=True), RGB, 0, id="webp"),
        pytest.param(encode(RGB, "JPEG", quality=98, subsampling=0), RGB, 6, id="jpeg"),
        pytest.param(
            encode(RGB, "JPEG", quality=98, subsampling=0, progressive=True), RGB, 6, id="progressive"
        ),
        pytest.param(encode(RGB, "JPEG", quality=98, keep_rgb=True), RGB, 6, id="jpeg in rgb"),
        pytest.param(encode(GRAY, "JPEG", quality=98), GRAY[..., None], 6, id="gray jpeg"),
        pytest.param(encode(RGB, "JPEG", quality=98) + b"\0garbage" * 99, RGB, 9, id="jpeg, garbage behind"),
        pytest.param(encode(RGB[:1, :1], "PNG"), RGB[:1, :1], 0, id="1 x 1"),
        pytest.param(encode(np.tile(RGB[:1], (1, 157, 1))[:, :10_000], "PNG"), None, 0, id="1 x 10000"),
    ],
)
def test_everyday_files(data, expected, tolerance):
    got = pixels(data)
    if expected is None:
        assert got.shape == (1, 10_000, 3)
    else:
        assert np.abs(got - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_both_decoders_agree(kind):
    data = encode(RGB, kind)
    reference = np.array(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(pixels(data) - reference).max() <= 2
    assert (
        np.abs(pixels(data) - decode_module._with_pillow(data, "x").permute(1, 2, 0).int().numpy()).max() <= 2
    )


def test_everyday_files_take_the_fast_decoder(monkeypatch):
    monkeypatch.setattr(decode_module, "_with_pillow", None)
    for data in (encode(RGB, "JPEG"), encode(RGB, "JPEG", progressive=True), encode(GRAY, "JPEG")):
        decode(data)


def test_without_a_decoder_pillow_takes_over(monkeypatch):
    data = encode(RGB, "JPEG")
    expected = pixels(data)
    monkeypatch.setattr(decoding.jpeg, "decoder", lambda: None)
    assert np.abs(pixels(data) - expected).max() <= 2


def test_pixels_are_contiguous_unless_asked_otherwise():
    for data in (encode(RGB, "JPEG"), encode(RGB, "PNG"), encode(RGB, "GIF")):
        assert decode(data).is_contiguous()
        assert decode(data, layout="decoded").permute(1, 2, 0).is_contiguous()
        assert torch.equal(decode(data), decode(data, layout="decoded"))


ORIENT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENT)
def test_every_orientation_comes_out_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(ORIENT[orientation](RGB))
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(stored, kind, exif=exif, **options)
    assert decode_module.orientation(data, "a") == orientation
    got = pixels(data)
    assert np.abs(got - RGB.astype(int)).max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_files_without_an_orientation_are_upright(kind):
    assert decode_module.orientation(encode(RGB, kind), "a") == 1


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_there_is_not(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert decode_module.orientation(encode(RGB, "JPEG", exif=exif), "a") == 1
    assert decode_module.orientation(encode(RGB, "JPEG", exif=b"Exif\0\0MM\0*garbage"), "a") == 1


def test_16_bit_gray_is_scaled_not_clipped():
    gradient = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for data in (encode(gradient, "PNG"), encode(gradient, "TIFF")):
        got = pixels(data)
        assert got.mean() == pytest.approx(127.5, abs=0.5)
        assert np.abs(got - np.rint(gradient / 257)[..., None]).max() <= 1


def test_16_bit_colour_and_alpha():
    colour = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    got = pixels(png(30, 20, 16, 2, [row.astype(">u2").tobytes() for row in colour]))
    assert np.abs(got - np.rint(colour / 257)).max() <= 1
    alpha = np.full((20, 30, 1), 16384, dtype=np.uint16)
    rows = [row.astype(">u2").tobytes() for row in np.concatenate([colour, alpha], axis=2)]
    got = pixels(png(30, 20, 16, 6, rows))
    share = 16384 / 65535
    assert np.abs(got - (colour / 257 * share + 255 * (1 - share))).max() <= 1


def test_transparency_is_laid_over_white():
    alpha = np.linspace(0, 255, RGB.shape[1]).round().astype(np.uint8)[None].repeat(len(RGB), 0)[..., None]
    share = alpha / 255
    rgba = np.concatenate([RGB, alpha], axis=2)
    expected = RGB * share + 255 * (1 - share)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.abs(pixels(encode(rgba, kind, **options)) - expected).max() <= 1.5
    la = Image.fromarray(np.concatenate([GRAY[..., None], alpha], axis=2), "LA")
    assert np.abs(pixels(encode(la, "PNG")) - (GRAY[..., None] * share + 255 * (1 - share))).max() <= 1.5
    key = encode(Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", transparency=(10, 20, 30))
    assert (pixels(key) == 255).all()


def test_palettes():
    image = Image.fromarray(RGB).quantize(32)
    expected = np.array(image.convert("RGB")).astype(int)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert (pixels(encode(image, kind)) == expected).all(), kind
    hole = np.array(image) == 7
    assert hole.any()
    got = pixels(encode(image, "PNG", transparency=7))
    assert (got[hole] == 255).all()
    assert (got[~hole] == expected[~hole]).all()


def test_one_bit():
    bits = RGB[..., 0] > 100
    for kind in ("PNG", "TIFF", "BMP"):
        assert (pixels(encode(Image.fromarray(bits), kind)) == bits[..., None] * 255).all(), kind


def test_the_first_of_several_frames_and_pages():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "lime", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        got = pixels(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert (got == [255, 0, 0]).all(), kind


def test_cmyk_with_the_inverted_values_that_adobe_writes():
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[..., 1] = 255  # magenta only
    data = encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=98)
    assert b"Adobe" in data  # Pillow writes the marker, and inverted values
    assert np.abs(pixels(data) - [255, 0, 255]).max() <= 6
    tiff = encode(Image.fromarray(ink, "CMYK"), "TIFF")
    assert (pixels(tiff) == [255, 0, 255]).all()


def test_ycck():
    """Magenta ink: luma and chroma are those of the inks themselves, (0, 255, 0), the black is inverted."""
    y, cb, cr = Image.new("RGB", (1, 1), (0, 255, 0)).convert("YCbCr").getpixel((0, 0))
    stored = np.full((16, 16, 4), (y, cb, cr, 255), dtype=np.uint8)
    data = encode(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=98, subsampling=0)
    at = data.index(b"Adobe") + 11  # the byte that says how the colours are transformed
    data = data[:at] + b"\x02" + data[at + 1 :]
    assert np.abs(pixels(data) - [255, 0, 255]).max() <= 8


def test_float_tiff():
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(4, 0)
    for values in (ramp, ramp * 255):
        assert np.abs(pixels(encode(values, "TIFF")) - np.arange(256)[None, :, None]).max() <= 1
    for bad, text in ((ramp * 1000, "0 to 1000; 0 to 255"), (ramp - 0.5, "-0.5 to 0.5; 0 to 1")):
        with pytest.raises(BadImage, match=f"its values run from {text} can be read"):
            decode(encode(bad, "TIFF"))
    ramp[0, 0] = np.nan
    with pytest.raises(BadImage):
        decode(encode(ramp, "TIFF"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_file_is_named(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encode(noise, kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadImage) as caught:
        decode(path)
    assert caught.value.name == str(path)
    assert str(caught.value).startswith(f"Cannot read image {str(path)!r}: ")
    assert "\n" not in str(caught.value)


def test_rejections_word_for_word(tmp_path):
    path = tmp_path / "cat.jpg"

    def message():
        with pytest.raises(BadImage) as caught:
            decode(path)
        return str(caught.value).replace(str(path), "cat.jpg")

    assert message() == "Cannot read image 'cat.jpg': no such file or directory."
    path.write_bytes(b"")
    assert message() == "Cannot read image 'cat.jpg': the file is empty."
    path.write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    assert message() == "Cannot read image 'cat.jpg': it is not an image (it begins with b'<!DOCTYPE ht')."
    path.write_bytes(encode(RGB, "JPEG")[:900])
    assert message().startswith("Cannot read image 'cat.jpg': image file is truncated")
    path.unlink()
    path.mkdir()
    assert message() == "Cannot read image 'cat.jpg': is a directory."
    path.rmdir()
    path.symlink_to(path)
    assert message() == "Cannot read image 'cat.jpg': too many levels of symbolic links."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(encode(RGB, "JPEG"))
    path.chmod(0)
    with pytest.raises(BadImage, match="permission denied"):
        decode(path)


def test_the_extension_does_not_matter(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(encode(RGB, "PNG"))
    assert (pixels(path) == RGB).all()


def bomb_png(side):
    """One colour, side x side, packed without holding the pixels."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + 3 * side)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def huge_headers():
    jpeg = bytearray(encode(RGB, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 30_000, 30_000)
    gif = bytearray(encode(RGB, "GIF"))
    gif[6:10] = struct.pack("<HH", 30_000, 30_000)
    bmp = bytearray(encode(RGB, "BMP"))
    bmp[18:26] = struct.pack("<ii", 30_000, 30_000)
    return {
        "jpeg": bytes(jpeg),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "ppm": b"P6 30000 30000 255\n" + b"\0" * 99,
    }


@pytest.mark.parametrize("kind", ["jpeg", "gif", "bmp", "ppm"])
def test_huge_images_are_refused_from_the_header(kind):
    data = huge_headers()[kind]
    start = time.perf_counter()
    with pytest.raises(BadImage) as caught:
        decode(data, name="huge")
    assert time.perf_counter() - start < 2
    expected = "30000 x 30000 pixels are" if kind == "jpeg" else "it has"
    assert str(caught.value) == f"Cannot read image 'huge': {expected} more than 200 million" + (
        "." if kind == "jpeg" else " pixels."
    )


@pytest.mark.slow
def test_a_decompression_bomb_takes_no_memory():
    data = bomb_png(20_000)
    assert len(data) < 3_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match="it has more than 200 million pixels"):
        decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_gif_of_many_frames_costs_one():
    frames = [Image.fromarray(np.full((64, 64), i % 256, dtype=np.uint8)) for i in range(300)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data).shape == (64, 64, 3)


def test_the_limit_admits_the_largest_cameras():
    assert 16_320 * 12_240 <= MAX_PIXELS < 20_000 * 20_000


def test_an_eps_file_is_no_image():
    """Pillow would start Ghostscript for it."""
    with pytest.raises(BadImage, match="it is not an image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def test_the_error_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(BadImage("a.jpg", "the file is empty")))
    assert (error.name, error.cause, str(error)) == (
        "a.jpg",
        "the file is empty",
        "Cannot read image 'a.jpg': the file is empty.",
    )


@pytest.mark.parametrize("seed", range(40))
def test_broken_bytes_give_pixels_or_a_rejection_never_another_error(seed):
    rng = np.random.default_rng(seed)
    kind = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "TGA", "PPM")[seed % 8]
    data = bytearray(encode(RGB, kind))
    for _ in range(5):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    with contextlib.suppress(BadImage):
        assert decode(bytes(data)).ndim == 3


def test_heic_is_read_where_a_package_adds_it(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    from tetravit.data.files import is_image

    Image.new("RGB", (64, 48), (200, 20, 20)).save(tmp_path / "a.HEIC", format="HEIF", quality=95)
    assert is_image("a.HEIC")
    found = decode(tmp_path / "a.HEIC")
    assert found.shape == (3, 48, 64)
    assert abs(int(found[0, 20, 20]) - 200) < 8
