"""Open the built site in a headless Chromium, at a desk's and a phone's width; print what is wrong.

    python .ci/browser.py [PATTERN ..]     pages whose path fits a glob pattern; default: all

A fault is: an error on the console, anything asked of another host, something wider than the
screen, a search for "packing" that finds nothing, or what axe-core calls serious or critical, in
light and in dark. Needs `pip install playwright`, npm (for axe-core), and Chromium: Debian's, or
the one that `playwright install chromium` brings. Exit code 1 on a fault.
"""
import functools, http.server, os, shutil, subprocess, sys, tarfile, tempfile, threading
from pathlib import Path

from playwright.sync_api import sync_playwright

root = Path(__file__).resolve().parent.parent
site = root/'_site'/'html'
axe_version = '4.14.1'
desk, phone = dict(width=1280, height=900), dict(width=390, height=844)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def serve():
    "The site on a free local port; its address."
    handler = functools.partial(Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_port}'


def axe():
    "The source of axe-core, from npm."
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([shutil.which('npm'), 'pack', '--silent', f'axe-core@{axe_version}'],
                       cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob('*.tgz'))) as tar:
            return tar.extractfile('package/axe.min.js').read().decode()


def browser(p):
    "A headless Chromium that asks for nothing by itself."
    flags = ['--disable-background-networking', '--disable-component-update', '--no-first-run']
    if getattr(os, 'geteuid', lambda: 1)() == 0: flags.append('--no-sandbox')
    own = os.environ.get('CHROMIUM') or shutil.which('chromium')  # None: Playwright's own
    return p.chromium.launch(executable_path=own, args=flags)


def watch(page, base, seen):
    "Put errors of the console, and what is asked of other hosts, into `seen`."
    page.on('console', lambda m: m.type == 'error' and seen.append(f'console: {m.text}'))
    page.on('pageerror', lambda e: seen.append(f'script: {e}'))
    page.on('response', lambda r: r.status >= 400 and seen.append(f'{r.status}: {r.url}'))
    def gate(route):
        if route.request.url.startswith((base, 'data:', 'blob:')): return route.continue_()
        seen.append(f'asks another host: {route.request.url}')
        route.abort()
    page.route('**/*', gate)


wide = """() => {
  const most = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth <= most) return []
  const clipped = e => {
    for (let p = e.parentElement; p; p = p.parentElement)
      if (getComputedStyle(p).overflowX != 'visible') return true
  }
  const over = e => e.getBoundingClientRect().right > most + 1 && !clipped(e)
  const all = [...document.querySelectorAll('main *')].filter(over)
  const shown = all.slice(0, 3).map(e => e.outerHTML.slice(0, 120))
  return [`${document.documentElement.scrollWidth} px wide`, ...shown]
}"""

turn = """async theme => {
  document.documentElement.dataset.theme = document.documentElement.dataset.mode = theme
  for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame)  // until it is painted so
}"""


def grave(page):
    "What axe-core finds serious or critical, with the first place of each."
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")['violations']
    for v in found:
        if v['impact'] not in ('serious', 'critical'): continue
        first = v['nodes'][0]
        why = first['any'][0]['message'][:160] if first['any'] else ''
        yield f"{v['id']} ({v['impact']}, {len(v['nodes'])} places): {first['html'][:160]} {why}"


def look(page, url, axe_source):
    "Open a page in each way, everything that folds unfolded; yield its faults."
    for size in (desk, phone):
        page.set_viewport_size(size)
        page.goto(url, wait_until='load')
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        if not page.locator('main h1').count(): yield 'no heading: it does not render'
        for fault in page.evaluate(wide): yield f"{size['width']} px: {fault}"
        page.evaluate(axe_source)
        for theme in ('light', 'dark') if size is desk else ('light',):
            page.evaluate(turn, theme)
            yield from (f"axe, {theme}, {size['width']} px: {fault}" for fault in grave(page))


def search(page, base):
    "Yield a fault if the search does not find the lesson that packs."
    page.goto(f'{base}/search.html?q=packing')
    page.locator('.search-summary', has_text='finished').wait_for()
    found = page.locator('#search-results li a').evaluate_all('all => all.map(a => a.href)')
    print(f'search for "packing": {len(found)} pages')
    if not any('00_data' in a for a in found): yield f'a search for "packing" finds {found}'


def main(patterns):
    "Look at all pages, print the faults, return the exit code."
    found = {p for pattern in patterns or ['**/*.html'] for p in site.glob(pattern)}
    pages = sorted(p for p in found if '_static' not in p.parts)
    if not pages: sys.exit(f'no page in {site}: run python site/build.py first')
    base, source, n_faults = serve(), axe(), 0
    with sync_playwright() as p:
        page, seen = browser(p).new_page(reduced_motion='reduce'), []  # colours change at once
        page.set_default_timeout(120_000)  # a machine may be busy
        watch(page, base, seen)
        for path in pages:
            name = path.relative_to(site).as_posix()
            faults = list(look(page, f'{base}/{name}', source)) + seen
            if name == 'search.html': faults += search(page, base)
            print(f'{name}: {len(faults)} faults', *dict.fromkeys(faults), sep='\n    ', flush=True)
            n_faults += len(faults)
            seen.clear()
        page.context.browser.close()
    print(f'{len(pages)} pages, {n_faults} faults')
    return n_faults > 0


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
