"""Line plots as SVG, without a library: logarithmic axes, a legend, light and dark enough for
either background."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 680, 400
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 40, 92
COLOURS = ["#2f6fde", "#d9822b", "#2f9e5b", "#b5477d", "#7a7a7a", "#8a63d2"]


def short(value):
    """A number for an axis."""
    for factor, letter in [(1e9, "G"), (1e6, "M"), (1e3, "k")]:
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def ticks(low, high):
    """The powers of ten between, with 2 and 5 where there are few."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    steps = [1, 2, 5] if high / low < 200 else [1]
    found = [power * step for power in powers for step in steps]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


class Axis:
    """One logarithmic axis, from data to pixels."""

    def __init__(self, values, begin, end, whole):
        low, high = min(values), max(values)
        if whole:  # to the next nice number, so that the curve has room
            low, high = (10 ** (math.floor(math.log10(low) * 3) / 3), 10 ** (math.ceil(math.log10(high * 1.05) * 3) / 3))
        if low == high:
            low, high = low / 2, high * 2
        self.low, self.high, self.begin, self.end = low, high, begin, end

    def at(self, value):
        """Where a value lies."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)


def plot(path, title, x_title, y_title, lines, x_names=None):
    """Writes a plot of `lines`: name to [(x, y)]; `x_names` name the ticks of the x axis."""
    lines = {name: [(x, y) for x, y in sorted(points) if x > 0 and y > 0] for name, points in lines.items()}
    lines = {name: points for name, points in lines.items() if points}
    x = Axis([a for points in lines.values() for a, _ in points], LEFT, WIDTH - RIGHT, False)
    y = Axis([b for points in lines.values() for _, b in points], HEIGHT - BOTTOM, TOP, True)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{WIDTH / 2}" y="22" text-anchor="middle" font-size="15">{escape(title)}</text>',
    ]
    for value in ticks(y.low, y.high):
        at = y.at(value)
        out.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value, name in (x_names or {value: short(value) for value in ticks(x.low, x.high)}).items():
        at = x.at(value)
        out.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(name)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - BOTTOM + 36}" text-anchor="middle">{escape(x_title)}</text>')
    out.append(
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )
    for index, (name, points) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path_of = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)
        out.append(f'<polyline points="{path_of}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="3" fill="{colour}"/>' for a, b in points]
        across, down = LEFT + (index % 2) * 290, HEIGHT - 34 + (index // 2) * 18
        out.append(f'<path d="M{across} {down - 4}h22" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{across + 28}" y="{down}">{escape(name)}</text>')
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n", encoding="utf-8")
