"""`llm-proxy explore`: the daemon's explorer opens in a browser, or a stand-alone one serves until Ctrl-C."""

import contextlib
import http.client
import re
import shutil
import signal
import socket
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe

from llm_proxy.proxy import answers
from llm_proxy.service import explore
from tests.browser import browser, visit
from tests.explored import record

__all__ = ["browser", "visit"]

TOKEN = r"http://127\.0\.0\.1:(\d+)/llm-proxy/\?token=([\w-]{32})\b"


def get(port, target="/llm-proxy/", **headers):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(link):
        link.request("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = link.getresponse()
        return answer.status, answer, answer.read().decode()


def bearer(daemon):
    return {"Authorization": "Bearer " + (daemon.state / "secret").read_text()}


def explorers(daemon):
    """The explorer's processes of a daemon."""
    with contextlib.suppress(psutil.Error):
        return [one for one in psutil.Process(daemon.pid).children() if "llm_proxy.explorer" in one.cmdline()]
    return []


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture
def service(start, free_port):
    running = start("--service", "--port", str(free_port))
    running.wait_for_line("listens on")
    until(lambda: (running.state / "run").exists())
    return running


@pytest.fixture
def made_browser(tmp_path, environ):
    """A "browser" that notes how it was called."""
    note, script = tmp_path / "opened", tmp_path / "my-browser"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {note}\n')
    script.chmod(0o755)
    return SimpleNamespace(
        env={"BROWSER": str(script)}, opened=lambda: note.read_text().splitlines() if note.exists() else []
    )


def test_the_daemons_explorer_opens_in_a_real_browser(service, command, visit):
    """The printed address lets one browser in; its clean address does from then on, and nothing holds the token."""
    record(service.home / "made")
    shutil.copytree(service.home / "made/logs", service.logs, dirs_exist_ok=True)
    service.wait_for_recording()
    assert not explorers(service)
    until(lambda: get(service.port)[0] == 401, 60)  # on a machine with much to do it needs longer than visits wait
    printed = command("explore", "--print")
    assert printed.returncode == 0 and printed.stderr == ""
    port, token = re.search(TOKEN, printed.stdout).groups()
    assert int(port) == service.port
    page = visit(printed.stdout.split()[0])
    assert page.url == f"{service.url}/llm-proxy/" and "Sessions" in page.title()
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/llm-proxy")
    assert page.evaluate("document.cookie") == ""
    page.goto(f"{service.url}/")
    assert page.url == f"{service.url}/llm-proxy/" and "Sessions" in page.title()
    assert get(service.port, f"/llm-proxy/?token={token}")[0] == 401
    files = [file for file in service.home.rglob("*") if file.is_file() and not file.is_symlink()]
    assert not [file for file in files if token.encode() in file.read_bytes()]
    assert token not in "".join(service.lines)


def test_a_stranger_in_a_real_browser(service, visit, browser):
    """Without a session: what to type. From another site's page: a page without data, and from there the way in."""
    until(lambda: get(service.port)[0] == 401, 60)
    context = browser.new_context(viewport={"width": 400, "height": 800})
    page = context.new_page()
    page.goto(f"{service.url}/llm-proxy/sessions/x")
    assert "llm-proxy explore" in page.inner_text("main")
    _is_for_everybody(page)
    with socket.create_server(("127.0.0.1", 0)) as link:
        elsewhere = f"http://localhost:{link.getsockname()[1]}/"
    page.route(
        elsewhere,
        lambda route: route.fulfill(body=f"<a href='{service.url}/llm-proxy/'>go</a>", content_type="text/html"),
    )
    page.goto(elsewhere)
    page.click("a")
    assert "does not open this way" in page.inner_text("h1")
    _is_for_everybody(page)
    page.click("a")
    assert "llm-proxy explore" in page.inner_text("main")
    context.close()


def _is_for_everybody(page):
    """No violation that axe-core knows of, and no wider than the window."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert not found, [(one["id"], one["help"]) for one in found]
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth")


def test_a_page_while_it_starts(browser):
    """Whole in itself, for everybody, and it asks again by itself: what comes then is the explorer."""
    starting = answers.error(503, "explorer_starting", "it starts", provider=answers.EXPLORER, close=True)
    here = answers.answer(200, b"<h1>Here</h1>", content_type="text/html", close=True)
    nothing = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"  # a browser stays where it is
    pages, asked = [starting], []

    def serve(link):
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = link.accept()
                with visitor:
                    line = visitor.recv(65536).partition(b" HTTP")[0]
                    if line == b"GET /llm-proxy/?token=x":
                        asked.append(line)
                        visitor.sendall(pages.pop(0) if pages else nothing)
                    else:
                        visitor.sendall(nothing)

    context = browser.new_context()
    page = context.new_page()
    with socket.create_server(("127.0.0.1", 0)) as link:
        threading.Thread(target=serve, args=(link,), daemon=True).start()
        url = f"http://127.0.0.1:{link.getsockname()[1]}/llm-proxy/?token=x"
        page.goto(url)
        assert page.inner_text("h1") == "The explorer is starting"
        assert page.evaluate("getComputedStyle(document.body).margin") == "0px"  # its own style is let in
        _is_for_everybody(page)
        until(lambda: len(asked) > 1, 60)
        pages += [starting, here]
        page.goto(url)
        page.wait_for_selector("text=Here")
        link.shutdown(socket.SHUT_RDWR)
    context.close()


@pytest.mark.parametrize("arguments", [["explore"], ["--explore"], ["-explore"]])
def test_it_opens_the_users_browser(service, command, made_browser, arguments):
    """With an address that works; on the screen stands only what works later too."""
    done = command(*arguments, env=made_browser.env)
    (opened,) = made_browser.opened()
    assert done.returncode == 0 and "token" not in done.stdout and f"{service.url}/llm-proxy/" in done.stdout
    assert re.fullmatch(TOKEN, opened)
    until(lambda: get(service.port)[0] == 401, 60)
    assert get(service.port, opened.removeprefix(service.url))[0] == 303
    assert stat.S_IMODE((service.state / "secret").stat().st_mode) == 0o600


def test_where_there_is_no_browser_the_address_is_printed(service, command):
    """Over ssh, in a container: no display, no command; one that fails counts as none."""
    assert re.search(TOKEN, command("explore").stdout)
    assert re.search(TOKEN, command("explore", env={"BROWSER": shutil.which("false")}).stdout)


def test_stand_alone_it_indexes_first_and_again(start, environ, free_port, made_browser):
    """No daemon: the logs are what there is; what is written later is there at the next look. Ctrl-C ends it."""
    logs = Path(environ["HOME"]) / ".llm-provider-logs"
    made = record(Path(environ["HOME"]) / "made")
    running = start("explore", "--port", str(free_port), "--print")
    port, token = running.wait_for_line(TOKEN).groups()
    assert int(port) == free_port
    status, answer, _ = get(free_port, f"/?token={token}")
    assert status == 307 and answer.headers["Location"] == "/llm-proxy/"
    assert get(free_port)[0] == 401
    assert '"groups":[]' in get(free_port, "/llm-proxy/api/sessions", **bearer(running))[2]
    shutil.copytree(made.logs, logs)
    time.sleep(2.1)  # it looks at most every other second
    assert made.sessions["ledger"] in get(free_port, "/llm-proxy/api/sessions", **bearer(running))[2]
    running.signal(signal.SIGINT)
    assert running.wait() == 0
    assert not [line for line in running.lines if "Traceback" in line]


def test_a_port_of_its_own_is_always_stand_alone(service, start, made_browser):
    """Also while a daemon runs; its sessions hold at the daemon's port too, as the secret is the same."""
    with socket.create_server(("127.0.0.1", 0)) as link:
        port = link.getsockname()[1]
    running = start("--explore-port", str(port), env=made_browser.env)
    running.wait_for_line("opens in your browser")
    (opened,) = made_browser.opened()
    assert opened.startswith(f"http://127.0.0.1:{port}/llm-proxy/?token=")
    _, answer, _ = get(port, opened.partition(str(port))[2])
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    until(lambda: get(service.port)[0] == 401, 60)
    assert get(port, Cookie=cookie)[0] == 200 and get(service.port, Cookie=cookie)[0] == 200


def test_logs_that_are_not_the_daemons(service, start, command, tmp_path):
    """Where they are named, they are shown, by an explorer of their own, on 8080 if nobody holds that."""
    same = command("explore", "--print", "--log-dir", str(service.logs))
    assert re.search(TOKEN, same.stdout)[1] == str(service.port)
    other = start("explore", "--print", "--log-dir", str(tmp_path / "elsewhere"))
    other.wait_for_line(r"http://127\.0\.0\.1:8080/llm-proxy/\?token=|cannot listen on 127\.0\.0\.1:8080")


def test_a_port_that_is_taken(command):
    """One line that says which, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as link:
        port = link.getsockname()[1]
        done = command("explore", "--port", str(port))
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert (
        f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr and "--explore-port" in done.stderr
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["explore", "--port", "0"],
        ["explore", "--port", "x"],
        ["explore", "now"],
        ["--explore-port", "70000"],
        ["--explore", "--json"],
    ],
)
def test_wrong_usage(command, arguments):
    """Exit 2, one line, nothing started."""
    done = command(*arguments)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_daemon_in_a_terminal_is_found_by_its_port(daemon, command):
    """It writes no state for others; whoever answers there as llm-proxy must be a process of this user."""
    assert explore.beside(daemon.port) == daemon.port
    with socket.create_server(("127.0.0.1", 0)) as link:
        port = link.getsockname()[1]
    assert explore.beside(port) == 0
    done = command("--explore", "--port", str(daemon.port))
    assert f"http://127.0.0.1:{daemon.port}/llm-proxy/?token=" in done.stdout


def test_the_daemon_starts_it_with_the_first_visit_and_again_after_a_crash(service):
    """One process beside proxy and keeper; killed, the next visit has it again. It ends with the daemon."""
    service.wait_for_recording()
    assert not explorers(service)
    until(lambda: get(service.port)[0] == 401, 60)
    (first,) = explorers(service)
    assert first.cmdline()[1] in ("-I", "-P")
    socket_file = service.state / f"explorer-{service.port}.sock"
    assert stat.S_IMODE(socket_file.stat().st_mode) == 0o600
    first.kill()
    until(lambda: get(service.port)[0] == 401, 60)
    (second,) = explorers(service)
    assert second.pid != first.pid
    assert service.stop() == 0
    until(lambda: not second.is_running())
    assert not socket_file.exists()


def test_a_killed_daemon_leaves_no_explorer(service):
    """Its pipe ends with it, whatever ends it."""
    until(lambda: get(service.port)[0] == 401, 60)
    (one,) = explorers(service)
    service.kill()
    until(lambda: not one.is_running() or one.status() == psutil.STATUS_ZOMBIE)


def test_safe_mode_has_no_explorer(start, command, free_port):
    """It carries calls and nothing else; `explore` then serves by itself."""
    running = start("--service", "--passthrough")
    running.wait_for_line("listens on")
    status, _, page = get(running.port, Accept="text/html")
    assert status == 503 and "There is no explorer now" in page
    until(lambda: (running.state / "run").exists())
    assert explore.running(str(running.state)) == 0
