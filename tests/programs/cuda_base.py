"""An image that begins with one of a registry."""

import modal

cuda_image = (
    modal.Image.from_registry("nvidia/cuda:12.8.1-devel-ubuntu22.04", add_python="3.12")
    .entrypoint([])
    .uv_pip_install("cowsay==6.1")
)
app = modal.App("example-cuda-base")


@app.function(image=cuda_image, gpu="H100")
def nvcc_version():
    import subprocess

    return subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout


@app.local_entrypoint()
def main():
    print(nvcc_version.remote())
