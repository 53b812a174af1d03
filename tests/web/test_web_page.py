"""The page of web/, built and used in Chromium, beside the command."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from manas_jax.data import photographs

MISSING = [name for name in ("node", "npm", "chromium") if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

# Chromium neither asks its makers' hosts for anything nor needs a sandbox of the kernel's.
QUIET = (
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ON_PROCESSOR = ("--disable-gpu",)
# WebGPU by Chromium's own renderer, which needs no graphics card.
ON_GRAPHICS_CARD = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
    "--ignore-gpu-blocklist",
)
PATIENCE = 60 * 60 * 1000  # milliseconds; a busy machine is slow, not wrong


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page, built by its one command, is served."""
    web = tmp_path_factory.mktemp("page") / "web"
    shutil.copytree(ROOT / "web", web, ignore=shutil.ignore_patterns("dist", "node_modules"))
    build = ["npm", "--prefix", str(web), "run", "build"]
    done = subprocess.run(
        build, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=web / "dist")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    """Starts Chromium with flags."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        yield functools.partial(_launch, driver)


def _launch(driver, flags):
    path = shutil.which("chromium")
    return driver.chromium.launch(executable_path=path, args=[*QUIET, *flags])


@pytest.fixture(scope="module")
def browser(chromium):
    with chromium(ON_PROCESSOR) as started:
        yield started


@pytest.fixture
def page(browser, address):
    with browser.new_context() as context:
        yield opened(context, address)


def opened(context, address):
    """The page, once its service worker has loaded it a second time."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_event("load")
    assert page.evaluate("crossOriginIsolated")
    return page


def rainy_picture(width, height):
    """A photograph with bright streaks."""
    cat = Image.open(photographs.path_in_package("skimage", "data/chelsea.png")).convert("RGB")
    pixels = np.array(cat.resize((width, height), Image.BICUBIC)).astype(int)
    draw = np.random.default_rng(0)
    for _ in range(width * height // 400):
        length = draw.integers(8, 20)
        x, y = draw.integers(width), draw.integers(height)
        rows = np.arange(y, min(y + length, height))
        columns = np.minimum(x + (rows - y) // 4, width - 1)
        pixels[rows, columns] += 90
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def by_command(files, out, *options):
    """What the command makes of the files."""
    command = [sys.executable, "-m", "manas_jax.derain", *files, "-o", out, "--quiet", *options]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True)
    return [Image.open(out / file.name) for file in files]


def wait_for_all(page):
    """Waits until every picture has a result or has failed."""
    unfinished = page.locator("#pictures > li:not(.failed, :has(a:not([hidden])))")
    while unfinished.count():
        page.wait_for_timeout(100)


def downloads(page, folder):
    """The downloaded pictures, in the order of the page."""
    folder.mkdir()
    files = []
    for link in page.locator("a[download]:visible").all():
        with page.expect_download() as download:
            link.click()
        files.append(folder / download.value.suggested_filename)
        download.value.save_as(files[-1])
    return files


def pixels(image):
    return np.asarray(image.convert("RGB")).astype(int)


def assert_same(made, wanted, original):
    """The page's picture is the command's, within one grey level, and rain was removed."""
    assert (made.format, made.size) == (wanted.format, original.size)
    assert np.abs(pixels(made) - pixels(wanted)).max() <= 1
    assert np.abs(pixels(made) - pixels(original)).max() > 20


def test_pictures(page, address, tmp_path):
    """Several at once, of odd sizes, one of them no picture; none of them leaves the page."""
    sent = []
    page.on("request", lambda request: sent.append((request.method, request.url)))
    sizes = {"cat.png": (253, 187), "small.png": (47, 61), "wide.webp": (301, 131)}
    files = [tmp_path / name for name in sizes]
    for file in files:
        rainy_picture(*sizes[file.name]).save(file, lossless=True)
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    page.set_input_files("#files", [files[0], bad, *files[1:]])
    wait_for_all(page)
    assert "cannot read the file as a picture" in page.inner_text("li:has-text('bad.jpg') .state")
    assert "WebAssembly" in page.inner_text("#backend")
    made = downloads(page, tmp_path / "made")
    assert [file.name for file in made] == [f"{file.stem}-derained{file.suffix}" for file in files]
    wanted = by_command(files, tmp_path / "wanted")
    for one, want, file in zip(map(Image.open, made), wanted, files, strict=True):
        assert_same(one, want, Image.open(file))
    elsewhere = [url for _, url in sent if not url.startswith((address, f"blob:{address}"))]
    assert not elsewhere
    assert {method for method, _ in sent} == {"GET"}


def test_jpeg_is_upright_and_grey_stays_grey(page, tmp_path):
    photograph, grey = tmp_path / "photograph.JPG", tmp_path / "grey.png"
    rotated = Image.Exif()
    rotated[0x0112] = 6  # shown turned by a quarter
    rainy_picture(240, 160).save(photograph, quality=95, exif=rotated, format="JPEG")
    rainy_picture(96, 64).convert("L").save(grey)
    page.set_input_files("#files", [photograph, grey])
    wait_for_all(page)
    jpeg, png = downloads(page, tmp_path / "made")
    assert jpeg.name == "photograph-derained.JPG"
    jpeg, png = Image.open(jpeg), Image.open(png)
    wanted, wanted_grey = by_command([photograph, grey], tmp_path / "wanted")
    assert (jpeg.format, jpeg.size) == ("JPEG", (160, 240))
    turned = wanted.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(pixels(jpeg) - pixels(turned)).mean() < 2  # both were encoded once more
    assert np.abs(pixels(png) - pixels(wanted_grey)).max() <= 1


def test_other_weights(page, tmp_path):
    """Choosing them de-rains the pictures on the page anew."""
    file = tmp_path / "cat.png"
    rainy_picture(150, 110).save(file)
    page.set_input_files("#files", file)
    wait_for_all(page)
    (general,) = downloads(page, tmp_path / "general")
    page.select_option("#weights", "rain100l")
    assert not page.locator("a[download]:visible").count()
    wait_for_all(page)
    (other,) = downloads(page, tmp_path / "other")
    (wanted,) = by_command([file], tmp_path / "wanted", "--weights", "rain100l")
    assert_same(Image.open(other), wanted, Image.open(file))
    assert np.abs(pixels(Image.open(other)) - pixels(Image.open(general))).max() > 5


def test_without_weights_and_without_threads(browser, address, tmp_path):
    """A lost connection is named, and pictures are de-rained when it is back; on one thread."""
    file = tmp_path / "cat.png"
    rainy_picture(90, 70).save(file)
    with browser.new_context(service_workers="block") as context:
        context.route("**/*.onnx", lambda route: route.abort())
        page = context.new_page()
        page.goto(address)
        page.set_input_files("#files", file)
        wait_for_all(page)
        assert "weights could not be loaded" in page.inner_text(".failed .state")
        context.unroute("**/*.onnx")
        page.select_option("#weights", "rain100l")
        wait_for_all(page)
        assert page.locator("a[download]:visible").count() == 1
        assert not page.evaluate("crossOriginIsolated")


GIVE = """([kind, name, content]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(content)], name));
  const event = kind === "drop"
    ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
  document.querySelector("main").dispatchEvent(event);
}"""
"""Drops or pastes a file."""


def test_phone_keyboard_and_screen_reader(browser, address, tmp_path):
    file = tmp_path / "cat.png"
    rainy_picture(90, 70).save(file)
    with browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True) as context:
        page = opened(context, address)
        page.set_input_files("#files", file)
        wait_for_all(page)
        assert page.inner_text("#announcement") == "cat.png: The rain is removed."
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        slider = page.get_by_role("slider", name="Before and after, cat.png")
        assert slider.get_attribute("aria-valuetext") == "50 % before, 50 % after"
        page.get_by_role("combobox", name="Network").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == "51 % before, 49 % after"
        page.locator("figure").tap(position={"x": 0, "y": 20})
        assert slider.get_attribute("aria-valuetext") == "0 % before, 100 % after"

        for kind in ("paste", "drop"):
            page.evaluate(GIVE, [kind, f"{kind}.png", [*file.read_bytes()]])
        wait_for_all(page)
        for name in ("cat.png", "paste.png", "drop.png"):
            assert page.get_by_role("link", name=f"Download {name[:-4]}-derained.png").is_visible()
            page.get_by_role("button", name=f"Close {name}").press("Enter")
        assert not page.locator("#pictures > li").count()
        assert page.evaluate("document.activeElement.id") == "files"


def test_graphics_card(chromium, address, tmp_path):
    """By WebGPU, on the processor: slow, but the same numbers."""
    file = tmp_path / "cat.png"
    rainy_picture(47, 61).save(file)
    with chromium(ON_GRAPHICS_CARD) as browser, browser.new_context() as context:
        page = opened(context, address)
        if not page.evaluate("(async () => Boolean(await navigator.gpu?.requestAdapter()))()"):
            pytest.skip("this Chromium has no WebGPU")
        page.set_input_files("#files", file)
        wait_for_all(page)
        assert "WebGPU" in page.inner_text("#backend")
        (made,) = downloads(page, tmp_path / "made")
    (wanted,) = by_command([file], tmp_path / "wanted")
    assert_same(Image.open(made), wanted, Image.open(file))


def test_12_megapixels(page, tmp_path):
    file = tmp_path / "large.png"
    rainy_picture(4000, 3000).save(file)
    page.set_input_files("#files", file)
    page.get_by_text(re.compile("Tile [1-9]")).wait_for()
    wait_for_all(page)
    (made,) = downloads(page, tmp_path / "made")
    (wanted,) = by_command([file], tmp_path / "wanted", "--tile", "1024")
    assert_same(Image.open(made), wanted, Image.open(file))
