// A mask while it is worked on: what the segmenter cut, with what the user painted and erased over
// it, so that another click leaves strokes alone.

const CUT = 1, PAINTED = 2, ERASED = 4;
const inside = (value) => Boolean(value & PAINTED) || (Boolean(value & CUT) && !(value & ERASED));
export const INSIDE = Uint8Array.from({ length: 8 }, (_, value) => (inside(value) ? 1 : 0));

export class Mask {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.pixels = new Uint8Array(width * height);
  }

  // Runs are lengths, row by row, background first: see mudi/studio/runs.py.
  runs() {
    const found = [];
    let value = 0, length = 0;
    for (const pixel of this.pixels) {
      if (INSIDE[pixel] === value) length++;
      else {
        found.push(length);
        value ^= 1;
        length = 1;
      }
    }
    found.push(length);
    return found;
  }

  // What the segmenter says; strokes stay.
  cut(runs) {
    let at = 0, value = 0;
    for (const length of runs) {
      for (const end = at + length; at < end; at++) {
        this.pixels[at] = value ? this.pixels[at] | CUT : this.pixels[at] & ~CUT;
      }
      value ^= 1;
    }
  }

  // A whole mask in place of this one, as strokes where it differs.
  correct(runs) {
    let at = 0, value = 0;
    for (const length of runs) {
      for (const end = at + length; at < end; at++) {
        const pixel = this.pixels[at];
        if (INSIDE[pixel] !== value) this.pixels[at] = (pixel & CUT) | (value ? PAINTED : ERASED);
      }
      value ^= 1;
    }
  }

  clear() {
    this.pixels.fill(0);
  }

  get empty() {
    return !this.pixels.some((pixel) => INSIDE[pixel]);
  }

  // A stroke from one place to another; returns the rectangle that may have changed.
  stroke(from, to, radius, adds) {
    const distance = Math.hypot(to.x - from.x, to.y - from.y);
    const steps = Math.max(1, Math.ceil(distance / Math.max(0.5, radius / 3)));
    for (let step = 0; step <= steps; step++) {
      const share = step / steps;
      this.dab(from.x + share * (to.x - from.x), from.y + share * (to.y - from.y), radius, adds);
    }
    return this.clipped(
      Math.min(from.x, to.x) - radius, Math.min(from.y, to.y) - radius,
      Math.max(from.x, to.x) + radius, Math.max(from.y, to.y) + radius,
    );
  }

  dab(x, y, radius, adds) {
    const { left, top, right, bottom } = this.clipped(x - radius, y - radius, x + radius, y + radius);
    const most = Math.max(0.5, radius) ** 2;
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        if ((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 > most) continue;
        const at = row * this.width + column;
        this.pixels[at] = (this.pixels[at] & CUT) | (adds ? PAINTED : ERASED);
      }
    }
  }

  clipped(left, top, right, bottom) {
    return {
      left: Math.max(0, Math.floor(left)),
      top: Math.max(0, Math.floor(top)),
      right: Math.min(this.width, Math.ceil(right) + 1),
      bottom: Math.min(this.height, Math.ceil(bottom) + 1),
    };
  }

  // Values and lengths in turn, of all layers: small enough to keep for undo and in the browser.
  packed() {
    const found = [];
    let start = 0;
    for (let at = 1; at <= this.pixels.length; at++) {
      if (at === this.pixels.length || this.pixels[at] !== this.pixels[start]) {
        found.push(this.pixels[start], at - start);
        start = at;
      }
    }
    return found;
  }

  unpack(packed) {
    let at = 0;
    for (let i = 0; i < packed.length; i += 2) {
      this.pixels.fill(packed[i], at, at + packed[i + 1]);
      at += packed[i + 1];
    }
  }
}
