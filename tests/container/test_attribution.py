"""A real container whose prints are heard: which line belongs to which input, whatever thread or process printed it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.model.spec import FunctionSpec
from kedge.wire.records import DROPPED, STDERR, STDOUT, Reader, Record
from tests.container.fake_plane import FakePlane, function


class Listener(FakePlane):
    """Hears what its container prints."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.heard: list[Record] = []
        self.deaf = False
        """It does not listen."""
        self._reader = Reader()
        self._listening, self.records = os.pipe()
        os.set_blocking(self._listening, False)
        os.set_blocking(self.records, False)

    def poll(self, timeout: float) -> None:
        super().poll(timeout)
        self.listen()

    def listen(self) -> None:
        if self.deaf:
            return
        try:
            while data := os.read(self._listening, 1 << 20):
                self.heard += self._reader.feed(data)
        except BlockingIOError:
            pass

    def stop(self) -> None:
        try:
            os.killpg(self.process, signal.SIGKILL)  # with what inputs have started
        except ProcessLookupError:
            pass
        super().stop()
        os.close(self._listening)
        os.close(self.records)

    def run(self, source: str) -> int:
        """An input that runs this code, to its end."""
        lease = self.dispatch(source)
        self.value(lease)
        return lease

    def lines(self, lease: int = 0, stream: int = STDOUT) -> list[str]:
        """What an input has printed, in the order in which its lines ended; of lease 0: what no input has."""
        self.listen()
        call = f"fc-{lease:08x}" if lease else ""
        begun: dict[int, bytes] = {}
        found: list[str] = []
        for record in self.heard:
            if (record.origin.call, record.kind) == (call, stream):
                *ended, rest = (begun.pop(record.writer, b"") + record.data).split(b"\n")
                found += [line.decode() for line in ended]
                if rest:
                    begun[record.writer] = rest
        assert not begun
        return found

    def raw(self, name: str = "stdout") -> str:
        """What came through the descriptors themselves."""
        return (self.directory / name).read_text()


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Listener]:
    plane = Listener(tmp_path)
    yield plane
    plane.stop()


def printing(max_inputs: int = 4, *, is_async: bool = False) -> FunctionSpec:
    return function("run_async" if is_async else "run", max_inputs, is_async=is_async, module="printers")


KINDS = pytest.mark.parametrize(("max_inputs", "is_async"), [(1, False), (4, False), (4, True)])


@KINDS
def test_every_way_to_print_is_the_input_s(plane: Listener, max_inputs: int, is_async: bool) -> None:
    plane.start(printing(max_inputs, is_async=is_async))
    source = """
        print("printed", kedge.current_input().index)
        print("to stderr", file=sys.stderr)
        sys.stdout.write("written\\n")
        sys.stdout.buffer.write(b"bytes\\n")
        print("no newline", end="")
        logger.warning("logged by a handler that was there before")
    """
    for _ in range(2):
        lease = plane.run(source)
        assert plane.lines(lease) == [f"printed {lease * 10}", "written", "bytes", "no newline"]
        assert plane.lines(lease, STDERR) == ["to stderr", "logged by a handler that was there before"]
    assert plane.lines() == ["imported"]
    assert plane.raw() == plane.raw("stderr") == ""


@pytest.mark.parametrize("is_async", [False, True])
def test_inputs_that_print_at_the_same_time_share_no_line(plane: Listener, is_async: bool) -> None:
    plane.start(printing(4, is_async=is_async))
    rest = "await asyncio.sleep(0.001)" if is_async else "time.sleep(0.001)"
    source = f"""
        me = kedge.current_input().index
        for number in range(30):
            print(me, end=" ")
            {rest}
            print(number, end=" ", file=sys.stderr)
            print("of", number)
            {rest}
            print("also", me, file=sys.stderr)
    """
    leases = [plane.dispatch(source) for _ in range(4)]
    for lease in leases:
        plane.value(lease)
        assert plane.lines(lease) == [f"{lease * 10} of {number}" for number in range(30)]
        assert plane.lines(lease, STDERR) == [f"{number} also {lease * 10}" for number in range(30)]


@KINDS
def test_threads_belong_to_who_started_them(plane: Listener, max_inputs: int, is_async: bool) -> None:
    plane.start(printing(max_inputs, is_async=is_async))
    plane.run("shared['pool'] = ThreadPoolExecutor(1); shared['pool'].submit(print, 'first').result()")
    plane.run("shared['threads'] = ThreadPool(1); shared['threads'].apply(print, ('first',))")
    lease = plane.run(
        """
        import contextvars, traceback
        variable = contextvars.ContextVar("variable")
        variable.set("mine")
        def child():
            print("thread", kedge.current_input().index, variable.get("not inherited"))
            grandchild = threading.Thread(target=print, args=("grandchild",))
            grandchild.start()
            grandchild.join()
            print("an end without a newline", end="")
        thread = threading.Thread(target=child)
        thread.start()
        thread.join()
        timer = threading.Timer(0, print, ["timer"])
        timer.start()
        timer.join()
        with ThreadPoolExecutor(2) as own:
            list(own.map(print, ["own pool"]))
        shared["pool"].submit(print, "pool of another input").result()
        shared["threads"].apply(print, ("threads of another input",))
        shared["threads"].map(print, ["and mapped"])
        list(shared["threads"].imap(print, ["and one by one"]))
        list(shared["threads"].imap_unordered(print, ["in any order"]))
        try:
            shared["pool"].submit(int, "x").result()
        except ValueError as error:
            print("carried" if "Carried" in traceback.format_exc() else "plain", error)
        """
    )
    assert plane.lines(lease) == [
        f"thread {lease * 10} not inherited",
        "grandchild",
        "an end without a newline",
        "timer",
        "own pool",
        "pool of another input",
        "threads of another input",
        "and mapped",
        "and one by one",
        "in any order",
        "plain invalid literal for int() with base 10: 'x'",
    ]
    assert plane.lines(1) == plane.lines(2) == ["first"]


def test_a_thread_may_outlive_its_input(plane: Listener) -> None:
    plane.start(printing())
    lease = plane.run(
        """
        def late():
            allowed("late")
            print("late")
            note("printed")
        threading.Thread(target=late).start()
        """
    )
    plane.run("print('another')")
    plane.allow("late")
    plane.noted("printed")
    assert plane.lines(lease) == ["late"]


def test_tasks_and_their_threads_belong_to_who_started_them(plane: Listener) -> None:
    plane.start(printing(4, is_async=True))
    lease = plane.run(
        """
        async def task(name):
            print(name, "begins")
            await asyncio.sleep(0)
            print(name, "ends")
        await asyncio.gather(task("a"), task("b"))
        await asyncio.to_thread(print, "to_thread")
        await asyncio.get_running_loop().run_in_executor(None, print, "executor")
        asyncio.get_running_loop().call_soon(print, "callback")
        await asyncio.sleep(0.001)
        """
    )
    assert plane.lines(lease) == ["a begins", "b begins", "a ends", "b ends", "to_thread", "executor", "callback"]


def test_forked_processes_belong_to_who_gave_them_work(plane: Listener) -> None:
    plane.start(printing(2))
    plane.run("shared['processes'] = ProcessPoolExecutor(1); shared['processes'].submit(print_here, 'a').result()")
    lease = plane.run(
        """
        import multiprocessing
        shared["processes"].submit(print_here, "b").result()
        process = multiprocessing.get_context("fork").Process(target=print_here, args=("c",))
        process.start()
        process.join()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            pool.map(print_here, ["d"])
        print("begun", end=" ")
        process = os.fork()
        if process == 0:
            print("fork")
            os._exit(0)
        os.waitpid(process, 0)
        print("and ended")
        """
    )
    assert plane.lines(lease) == [*(f"{name} in process" for name in "bcd"), "fork", "begun and ended"]
    assert plane.lines(1) == ["a in process"]


# ---------------------------------------------------------------- child processes


def test_children_write_to_the_pipe_of_their_input(plane: Listener) -> None:
    plane.start(printing())
    lease = plane.run(
        """
        print("before", flush=True)
        done = subprocess.run(["sh", "-c", "echo out; echo err >&2; printf unfinished"])
        print("after", done.returncode, done.stdout, done.stderr)
        subprocess.check_call("echo shell", shell=True)
        with subprocess.Popen(["echo", "opened"], -1, None, None, None) as process:
            assert process.stdout is process.stderr is None
            assert process.wait() == process.wait(timeout=1) == process.poll() == 0
        print("then")
        process = subprocess.Popen(["sh", "-c", "echo polled; exit 3"])
        while process.poll() is None:
            time.sleep(0.001)
        print("code", process.returncode)
        subprocess.run(["sh", "-c", "echo both; echo streams >&2"], stderr=subprocess.STDOUT)
        subprocess.run(["sh", "-c", "echo given; echo crossed >&2"], stdout=sys.stderr, stderr=sys.stdout)
        print(subprocess.run(["echo", "captured"], capture_output=True, text=True).stdout, end="")
        print(subprocess.check_output(["echo", "fetched"], text=True), end="")
        print(os.popen("echo by popen").read(), end="")
        subprocess.run(["echo", "thrown away"], stdout=subprocess.DEVNULL)
        try:
            subprocess.run(["/not/there"])
        except FileNotFoundError:
            print("not there")
        """
    )
    assert plane.lines(lease) == [
        *("before", "out", "unfinished", "after 0 None None", "shell", "opened", "then", "polled", "code 3"),
        *("both", "streams", "crossed", "captured", "fetched", "by popen", "not there"),
    ]
    assert plane.lines(lease, STDERR) == ["err", "given"]
    assert plane.raw() == plane.raw("stderr") == ""


def test_so_do_those_of_asyncio(plane: Listener) -> None:
    plane.start(printing(4, is_async=True))
    source = """
        process = await asyncio.create_subprocess_exec("sh", "-c", "echo out; echo err >&2")
        print("code", await process.wait(), process.stdout)
        process = await asyncio.create_subprocess_shell("echo shell", stderr=asyncio.subprocess.PIPE)
        print("communicated", await process.communicate())
        process = await asyncio.create_subprocess_exec("echo", "x", stdout=asyncio.subprocess.PIPE)
        print("captured", (await process.communicate())[0])
        try:
            await asyncio.create_subprocess_exec("/not/there")
        except FileNotFoundError:
            print("not there")
    """
    expected = ["out", "code 0 None", "shell", "communicated (None, b'')", "captured b'x\\n'", "not there"]
    for plain in (False, True):
        text = source
        if plain:  # not the loop of the container, which is uvloop's
            body = "\n".join("    " + line for line in source.splitlines())
            text = f"        async def work():\n{body}\n        await asyncio.to_thread(asyncio.run, work())"
        lease = plane.run(text)
        assert plane.lines(lease) == expected
        assert plane.lines(lease, STDERR) == ["err"]


def test_children_of_concurrent_inputs_are_told_apart(plane: Listener) -> None:
    plane.start(printing(4))
    source = """
        me = kedge.current_input().index
        for number in range(10):
            subprocess.run(["sh", "-c", f"printf '{me} '; echo {number}"])
            print("ran", number)
    """
    leases = [plane.dispatch(source) for _ in range(4)]
    for lease in leases:
        plane.value(lease)
        expected = [line for number in range(10) for line in (f"{lease * 10} {number}", f"ran {number}")]
        assert plane.lines(lease) == expected


def test_what_a_child_leaves_behind_goes_on_and_holds_nothing_up(plane: Listener) -> None:
    plane.start(printing())
    journal = plane.journal_file
    lease = plane.run(
        f"""
        script = "echo started; (while [ ! -e {journal}.go ]; do sleep 0.01; done; echo late) & exit 0"
        subprocess.run(["sh", "-c", script])
        print("threads", sorted(thread.name for thread in threading.enumerate() if thread.name == "kedge output"))
        """
    )
    assert plane.lines(lease) == ["started", "threads ['kedge output']"]
    threads = "return len(os.listdir('/proc/self/task'))"
    before = plane.value(plane.dispatch(threads))
    plane.allow("go")
    plane.until(lambda: "late" in plane.lines(lease))
    assert plane.value(plane.dispatch(threads)) == before


def test_no_descriptor_is_left_of_children_that_have_ended(plane: Listener) -> None:
    plane.start(printing(1))
    count = "return len(os.listdir('/proc/self/fd'))"
    plane.run("subprocess.run(['true'])")
    before = plane.value(plane.dispatch(count))
    plane.run("for _ in range(5): subprocess.run(['true'])")
    plane.until(lambda: plane.value(plane.dispatch(count)) == before)


def test_pass_fds_and_inherited_descriptors_are_as_ever(plane: Listener) -> None:
    plane.start(printing(1))
    lease = plane.run(
        """
        reader, writer = os.pipe()
        subprocess.run(["sh", "-c", f"echo passed > /dev/fd/{writer}"], pass_fds=[writer])
        print(os.read(reader, 100))
        subprocess.run("echo $(ls /proc/self/fd)", shell=True)
        subprocess.run("for each in /proc/self/fd/*; do readlink $each; done", shell=True, close_fds=False)
        """
    )
    passed, alone, *_ = lines = plane.lines(lease)
    assert (passed, len(alone.split())) == ("b'passed\\n'", 4)
    assert os.readlink(f"/proc/self/fd/{plane.records}") not in lines


def test_a_forked_process_may_have_children_of_its_own(plane: Listener) -> None:
    plane.start(printing(1))
    lease = plane.run(
        """
        subprocess.run(["echo", "before"])
        process = os.fork()
        if process == 0:
            subprocess.run(["echo", "from the fork"])
            os._exit(0)
        os.waitpid(process, 0)
        subprocess.run(["echo", "after"])
        """
    )
    assert plane.lines(lease) == ["before", "from the fork", "after"]


def test_a_child_that_prints_much_is_heard_whole(plane: Listener) -> None:
    plane.start(printing(1))
    lease = plane.run("subprocess.run(['seq', '1', '100000'])")
    assert plane.lines(lease) == [str(number) for number in range(1, 100_001)]


def test_a_wait_for_a_child_can_be_interrupted_and_what_it_printed_is_there(plane: Listener) -> None:
    plane.start(printing(4))
    source = """
        try:
            subprocess.run(["sh", "-c", "echo begun; exec sleep 600"])
        except BaseException as error:
            print(type(error).__name__)
            note("over")
            raise
    """
    leases = [plane.dispatch(source) for _ in range(2)]
    for lease in leases:
        plane.until(lambda lease=lease: plane.lines(lease) == ["begun"])  # type: ignore[misc]
    plane.cancel(leases[0])
    assert plane.result(leases[0]).result.status == "terminated"
    plane.noted("over")
    assert plane.lines(leases[0]) == ["begun", "InputCancellation"]
    assert plane.lines(leases[1]) == ["begun"]


# ---------------------------------------------------------------- beside inputs, and past Python


def test_what_no_input_started_is_nobody_s(plane: Listener) -> None:
    plane.start(printing(2))
    lease = plane.run(
        """
        os.write(1, b"raw\\n")
        os.system("echo system")
        """
    )
    assert plane.lines(lease) == []
    assert plane.raw() == "raw\nsystem\n"
    plane.drain()
    assert plane.wait_exit() == 0
    assert plane.lines() == ["imported"]


def test_a_container_without_a_pipe_prints_as_ever(plane: Listener) -> None:
    os.close(plane.records or -1)
    plane.records = None
    plane.start(printing(2))
    lease = plane.dispatch("print('printed'); subprocess.run(['echo', 'child']); return kedge.current_input().index")
    threads = """
        seen = []
        thread = threading.Thread(target=lambda: seen.append(kedge.current_input().index))
        thread.start()
        thread.join()
        return seen == [kedge.current_input().index]
    """
    assert plane.value(lease) == lease * 10
    assert plane.value(plane.dispatch(threads)) is True
    plane.drain()
    assert plane.wait_exit() == 0
    assert sorted(plane.raw().split()) == ["child", "imported", "printed"]
    plane.records = os.open(os.devnull, os.O_RDONLY)


def test_the_end_of_a_container_lets_out_what_its_children_have_printed(plane: Listener) -> None:
    plane.start(printing(1))
    lease = plane.run(
        """
        child = subprocess.Popen(["echo", "not waited for"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        print("begun", end="")
        """
    )
    plane.drain()
    assert plane.wait_exit() == 0
    assert sorted(plane.lines(lease)) == ["begun", "not waited for"]


# ---------------------------------------------------------------- bad manners


def test_an_input_that_closes_stdout_silences_nobody(plane: Listener) -> None:
    plane.start(printing(2))
    lease = plane.run("sys.stdout.close(); sys.stderr.close(); print('mine')")
    other = plane.run("print('yours')")
    assert (plane.lines(lease), plane.lines(other)) == (["mine"], ["yours"])


def test_objects_that_print_when_they_die(plane: Listener) -> None:
    plane.start(printing(2))
    lease = plane.run(
        """
        class Loud:
            def __del__(self):
                print("died")
        for _ in range(100):
            one, other = Loud(), Loud()
            one.other, other.one = other, one
        del one, other
        import gc
        gc.collect()
        """
    )
    assert plane.lines(lease) == ["died"] * 200


def test_an_input_that_is_cancelled_while_it_prints(plane: Listener) -> None:
    plane.start(printing(4))
    source = """
        note("begins")
        number = 0
        while True:
            print("line", number)
            number += 1
    """
    sibling = plane.dispatch("for number in range(500): print('sibling', number); time.sleep(0.0005)")
    leases = [plane.dispatch(source) for _ in range(3)]
    plane.until(lambda: plane.journal().count("begins") == 3)
    plane.cancel(*leases)
    for lease in leases:
        assert plane.result(lease).result.status == "terminated"
    plane.value(sibling)
    assert plane.lines(sibling) == [f"sibling {number}" for number in range(500)]
    for lease in leases:
        lines = plane.lines(lease)
        whole = [line for line in lines if line.startswith("line ") and line[5:].isdecimal()]
        assert len(whole) >= len(lines) - 1, "the last line may be cut short by the cancellation"
        numbers = [int(line[5:]) for line in whole]
        assert numbers == sorted(numbers)


def test_nobody_waits_for_a_reader_that_has_stopped_and_what_is_lost_is_said(plane: Listener) -> None:
    plane.start(printing(2))
    plane.deaf = True
    chatter = plane.dispatch("for number in range(50_000): print('line', number)")
    sibling = plane.dispatch("print('sibling'); return 7")
    assert plane.value(sibling) == 7
    plane.value(chatter)
    plane.deaf = False
    plane.listen()
    plane.run("print('room again')")
    kept = plane.lines(chatter)
    assert kept == [f"line {number}" for number in range(len(kept))]
    notices = {record.origin.index: record.data.decode() for record in plane.heard if record.kind == DROPPED}
    lines = sum(int(notice.split()[0]) for notice in notices.values())
    assert lines == 50_000 - len(kept) + (1 - len(plane.lines(sibling)))
    assert re.match(r"\d+ lines were dropped \(\d+ bytes\): ", notices[chatter * 10])


def test_a_line_of_a_megabyte(plane: Listener) -> None:
    plane.start(printing(1))
    lease = plane.run("print('x' * 1_000_000); print('next')")
    assert [len(line) for line in plane.lines(lease)] == [1_000_000, 4]
