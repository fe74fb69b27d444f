"""A program that says `import modal` runs as it is.

    kedge run examples/modal_file.py --count 30

Under the commands of kedge, here and in containers, `import modal` means kedge. `--no-alias` turns that off.
"""

import modal

app = modal.App("modal-file", image=modal.Image.debian_slim())


@app.function(timeout=60, retries=modal.Retries(max_retries=2))
@modal.concurrent(max_inputs=10)
def square(x: int) -> int:
    return x * x


@app.cls()
class Greeter:
    greeting: str = modal.parameter(default="Hello")

    @modal.method()
    def greet(self, name: str) -> str:
        return f"{self.greeting}, {name}"


@app.local_entrypoint()
def main(count: int = 10):
    print("sum of squares:", sum(square.map(range(count))))
    print(Greeter(greeting="Good morning").greet.remote("Ada"))
    print("a modal.Function is a", type(square).__module__.partition(".")[0], "function")
