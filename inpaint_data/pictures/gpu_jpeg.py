"""JPEGs decoded on the GPU, by nvJPEG through NVIDIA's nvImageCodec."""

import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.ranks import own_gpu
from inpaint_data.shown import shortened

CPU = -99999  # in place of a GPU's number, nvImageCodec's for its own libjpeg-turbo
_INSTALL = "pip install 'inpaint_data[nvjpeg]'"
_decoders = threading.local()  # each thread's own, with a stream beside that of the encoder


def decoded_on_gpu(data: bytes) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB of a JPEG that is whole, not turned, by this process's GPU.

    What a GPU has no decoder for, such as an arithmetic code, nvImageCodec decodes on the CPU.

    Raises:
        SampleError: nvImageCodec cannot decode it.
        UsageError: there is no such GPU, or nvImageCodec is not installed.
    """
    number = _own()
    known = _decoders.__dict__.setdefault("known", {})
    if number not in known:
        try:
            known[number] = _Decoder(number)
        except RuntimeError as error:  # as of CUDA in a process that was forked
            raise UsageError(
                f"decoder: nvjpeg cannot use GPU {number} here ({shortened(str(error))}); read with workers: "
                "threads, or leave decoder out",
                ("pictures", "decoder"),
            ) from None
    pixels: npt.NDArray[np.uint8] | None = known[number](data)
    if pixels is None:
        raise SampleError("image is a JPEG that nvImageCodec cannot decode; set decoder: libjpeg, or save it again")
    return pixels


class _Decoder:
    """The decoder of one thread on one GPU."""

    def __init__(self, gpu: int, with_cpu: bool = True) -> None:
        codec = _nvimgcodec()
        kinds = [codec.BackendKind.HW_GPU_ONLY, codec.BackendKind.GPU_ONLY, codec.BackendKind.HYBRID_CPU_GPU]
        kinds = [*(kinds if gpu != CPU else ()), *([codec.BackendKind.CPU_ONLY] if with_cpu else ())]
        self._codec, self._stream = codec, 0
        if gpu != CPU:
            import torch  # settings are read without

            stream: Any = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
            self._held, self._stream = stream, stream.cuda_stream
        # Colours between those that have chroma of their own are libjpeg's, and so the pixels within a few levels.
        self._decoder = codec.Decoder(
            device_id=gpu,
            max_num_cpu_threads=1,
            backends=[codec.Backend(kind) for kind in kinds],
            options=":fancy_upsampling=1",
        )
        self._how = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)

    def __call__(self, data: bytes) -> npt.NDArray[np.uint8] | None:
        image = self._decoder.decode(self._codec.CodeStream(data), params=self._how, cuda_stream=self._stream)
        return None if image is None else np.array(image.cpu())


def _nvimgcodec() -> Any:
    """Raises UsageError where it is not installed."""
    try:
        import nvidia.nvimgcodec as nvimgcodec
    except ImportError as error:
        raise UsageError(
            f"decoder: nvjpeg needs nvImageCodec, which cannot be imported ({error}); {_INSTALL}, or leave decoder out",
            ("pictures", "decoder"),
        ) from None
    return nvimgcodec


@cache
def _own() -> int:
    """The number of this process's GPU. Raises UsageError where there is none."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "decoder: nvjpeg decodes on a CUDA device, and there is none; leave it out", ("pictures", "decoder")
        )
    return own_gpu(torch.cuda.device_count())


@cache
def check_decodes_on_gpu() -> None:
    """Raises UsageError unless JPEGs can be decoded on this process's GPU."""
    gpu, square = _own(), simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8))
    if _Decoder(gpu, with_cpu=False)(square) is None:
        raise UsageError(
            f"decoder: nvImageCodec finds no nvJPEG for GPU {gpu}; {_INSTALL}, or leave decoder out",
            ("pictures", "decoder"),
        )
