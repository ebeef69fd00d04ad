"""Drives the status page in headless Chromium by keyboard, and prints its content as lines of JSON.

Reads {"url": …, "token": …, "screenshot": …} from the first line of standard input, and one step from each further line.
"""

import json
import re
import sys

from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--window-size=1280,900", "--lang=en-US",
]

page = json.loads(sys.stdin.readline())
options = webdriver.ChromeOptions()
for flag in FLAGS:
    options.add_argument(flag)
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
wait = WebDriverWait(driver, 30, poll_frequency=0.05)


def report(**content):
    print(json.dumps(content), flush=True)


def text():
    return driver.execute_script("return document.body.innerText")


def wait_for(*parts):
    try:
        wait.until(lambda _: all(part in text() for part in parts))
    except Exception:
        sys.exit(f"{parts} is not seen in:\n{text()}")


def press(*keys):
    webdriver.ActionChains(driver).send_keys(*keys).perform()


def focused():
    # A scrollable container may have the focus, and has no name.
    return driver.execute_script(
        "const e = document.activeElement; return e.id || (['A', 'BUTTON'].includes(e.tagName) ? e.innerText : '')"
    )


def tab_to(label, limit=40):
    for _ in range(limit):
        press(Keys.TAB)
        if label in focused():
            return
    sys.exit(f"{label!r} cannot be reached by keyboard; the last focused element was {focused()!r}")


def colors(scheme):
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    return driver.execute_script("return getComputedStyle(document.body).backgroundColor")


try:
    for line in sys.stdin:
        step = json.loads(line)
        match step["do"]:
            case "enter":
                driver.get(page["url"])
                wait_for("Sign in")
                tab_to("token")
                press(step["token"], Keys.ENTER)
                wait_for(*step["see"])
            case "see":
                wait_for(*step["see"])
            case "match":
                wait.until(lambda _: re.search(step["pattern"], text()))
            case "follow":
                tab_to(step["link"])
                press(Keys.ENTER)
                wait_for(*step["see"])
            case "colors":
                report(light=colors("light"), dark=colors("dark"))
                colors("light")
                continue
            case "shoot":
                driver.save_screenshot(step["file"])
            case "logs":
                # The browser's own log: errors of scripts and violations of the content security policy.
                hosts = driver.execute_script("return performance.getEntriesByType('resource').map(e => new URL(e.name).host)")
                report(messages=[entry["message"] for entry in driver.get_log("browser")], hosts=sorted(set(hosts)))
                continue
        report(text=text(), focus=focused())
finally:
    driver.quit()
