"""What the page knows of an image, against a service that writes down what it is asked."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page

_OPEN_ANOTHER_WHILE_A_PLACE_IS_ASKED = """async () => {
    const { Session } = await import("/page/session.js");
    const log = [];
    const size = { width: 9, height: 9 };
    let count = 0;
    const service = {
        info: async () => ({ can: {}, limits: { regions: 100 } }),
        encode: async () => ({ id: `image ${++count}`, image: size, timing_ms: { encode: 1 } }),
        describe: async (id, regions) => {
            log.push(`asked ${id}`);
            await new Promise((resolve) => setTimeout(resolve));
            log.push(`answered ${id}`);
            return { captions: regions.map(() => ({ text: "a ring" })), timing_ms: { describe: 1 } };
        },
        forget: (id) => log.push(`forgot ${id}`),
    };
    const nothing = () => undefined;
    const session = new Session(service, {
        onChange: nothing, onError: (error) => log.push(String(error)), onWorked: nothing, onSaid: nothing,
    });
    await session.connect();
    const picture = () => ({ name: "a", ...size, source: null, file: new Blob(), resizedTo: null, note: "" });
    await session.open(picture());
    log.length = 0;
    const probed = session.probe({ kind: "point", x: 1, y: 1 });
    await Promise.all([session.open(picture()), probed]);
    await new Promise((resolve) => setTimeout(resolve));
    return log;
}"""


def test_an_image_is_forgotten_after_the_calls_about_it_also_those_of_the_same_moment(page: Page) -> None:
    log: list[Any] = page.evaluate(_OPEN_ANOTHER_WHILE_A_PLACE_IS_ASKED)
    assert sorted(log) == [
        *("answered image 1", "answered image 2", "asked image 1", "asked image 2", "forgot image 1"),
    ]
    assert log.index("answered image 1") < log.index("forgot image 1")
