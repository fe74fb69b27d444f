"""A job queue: documents are parsed by functions of their own, and a web app submits them and is asked for results."""

import time

import modal

app = modal.App("example-doc-ocr-jobs")
inference_image = modal.Image.debian_slim(python_version="3.12").uv_pip_install("cowsay==6.1")
web_image = modal.Image.debian_slim(python_version="3.12").uv_pip_install("fastapi[standard]==0.115.4")


@app.function(gpu="l40s", retries=3, image=inference_image)
def parse_receipt(image: bytes) -> str:
    import cowsay

    time.sleep(1)
    if image == b"torn":
        raise ValueError("this receipt cannot be read")
    return f"{image.decode()} read with cowsay {cowsay.__version__}"


@app.function(image=web_image)
@modal.concurrent(max_inputs=100)
@modal.asgi_app()
def wrapper():
    import fastapi

    web_app = fastapi.FastAPI()

    @web_app.post("/submit")
    async def submit(request: fastapi.Request):
        receipt = await request.body()
        call = await parse_receipt.spawn.aio(receipt)
        return {"call_id": call.object_id}

    @web_app.get("/result/{call_id}")
    async def result(call_id: str):
        function_call = modal.FunctionCall.from_id(call_id)
        try:
            found = await function_call.get.aio(timeout=0)
        except modal.exception.OutputExpiredError:
            return fastapi.responses.JSONResponse(content="expired", status_code=404)
        except TimeoutError:
            return fastapi.responses.JSONResponse(content="", status_code=202)
        except ValueError as error:
            return fastapi.responses.JSONResponse(content=str(error), status_code=422)
        return found

    return web_app
