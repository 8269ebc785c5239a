// A photo on a canvas with its mask over it: zoom, and from the screen's pixels to the photo's.
import { INSIDE } from "./mask.js";

const OUTLINE = "#ff1fc7", BACKDROP = "rgba(16, 22, 38, 0.62)";
const NEAREST = 40; // screen pixels that one of the photo may take

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.shape = document.createElement("canvas"); // the mask, opaque where the subject is
    this.layer = document.createElement("canvas"); // of the screen's size
    this.photo = this.mask = null;
    this.scale = 1;
    this.left = this.top = 0;
    this.marks = { points: [], box: null, dragged: null, brush: null };
    this.maskOnly = false;
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
  }

  open(photo, mask) {
    this.photo = photo;
    this.mask = mask;
    this.shape.width = mask.width;
    this.shape.height = mask.height;
    this.changed();
    this.fit();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    this.ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.layer]) {
      canvas.width = Math.max(1, Math.round(clientWidth * this.ratio));
      canvas.height = Math.max(1, Math.round(clientHeight * this.ratio));
    }
    this.canvas.style.width = `${clientWidth}px`;
    this.canvas.style.height = `${clientHeight}px`;
    this.fit();
  }

  get fitting() {
    return 0.97 * Math.min(this.canvas.width / this.mask.width, this.canvas.height / this.mask.height);
  }

  fit() {
    if (!this.mask) return;
    this.scale = this.fitting;
    this.left = (this.canvas.width - this.scale * this.mask.width) / 2;
    this.top = (this.canvas.height - this.scale * this.mask.height) / 2;
    this.draw();
  }

  zoom(factor, event) {
    if (!this.mask) return;
    const middle = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    const { x, y } = event ? this.onCanvas(event) : middle;
    const scale = Math.min(NEAREST, Math.max(this.fitting / 2, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  move(x, y) {
    this.left += x * this.ratio;
    this.top += y * this.ratio;
    this.draw();
  }

  onCanvas(event) {
    const place = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - place.left) * this.ratio, y: (event.clientY - place.top) * this.ratio };
  }

  // Where the photo is pointed at, in its pixels.
  at(event) {
    const { x, y } = this.onCanvas(event);
    return { x: (x - this.left) / this.scale, y: (y - this.top) / this.scale };
  }

  contains({ x, y }) {
    return x >= 0 && y >= 0 && x < this.mask.width && y < this.mask.height;
  }

  // Bring the shape up to date, all of it or a rectangle.
  changed(area = { left: 0, top: 0, right: this.mask.width, bottom: this.mask.height }) {
    const width = area.right - area.left, height = area.bottom - area.top;
    if (width <= 0 || height <= 0) return;
    const context = this.shape.getContext("2d");
    const image = context.createImageData(width, height);
    const words = new Uint32Array(image.data.buffer);
    for (let row = 0; row < height; row++) {
      const from = (row + area.top) * this.mask.width + area.left;
      for (let column = 0; column < width; column++) {
        words[row * width + column] = INSIDE[this.mask.pixels[from + column]] ? 0xffffffff : 0;
      }
    }
    context.putImageData(image, area.left, area.top);
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.paint();
    });
  }

  place(context, picture, x = 0, y = 0) {
    const { scale, mask } = this;
    context.drawImage(picture, this.left + x, this.top + y, scale * mask.width, scale * mask.height);
  }

  paint() {
    const { context, canvas } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.mask) return;
    context.imageSmoothingEnabled = this.scale < 2 * this.ratio;
    if (this.maskOnly) {
      context.fillStyle = "black";
      context.fillRect(this.left, this.top, this.scale * this.mask.width, this.scale * this.mask.height);
      this.place(context, this.shape);
    } else {
      this.place(context, this.photo);
      this.paintMask();
    }
    this.paintMarks();
  }

  paintMask() {
    const { layer } = this, pen = layer.getContext("2d");
    const width = 1.5 * this.ratio;
    const fresh = () => {
      pen.globalCompositeOperation = "source-over";
      pen.clearRect(0, 0, layer.width, layer.height);
      pen.imageSmoothingEnabled = this.scale < 2 * this.ratio;
    };
    fresh(); // the background, dimmed
    pen.fillStyle = BACKDROP;
    pen.fillRect(this.left, this.top, this.scale * this.mask.width, this.scale * this.mask.height);
    pen.globalCompositeOperation = "destination-out";
    this.place(pen, this.shape);
    this.context.drawImage(layer, 0, 0);
    fresh(); // a line round the subject, as thick on the screen at any zoom
    for (let turn = 0; turn < 8; turn++) {
      const angle = (turn * Math.PI) / 4;
      this.place(pen, this.shape, width * Math.cos(angle), width * Math.sin(angle));
    }
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = OUTLINE;
    pen.fillRect(0, 0, layer.width, layer.height);
    pen.globalCompositeOperation = "destination-out";
    this.place(pen, this.shape);
    this.context.drawImage(layer, 0, 0);
  }

  paintMarks() {
    const { context: pen, ratio } = this;
    const x = (value) => this.left + value * this.scale, y = (value) => this.top + value * this.scale;
    for (const [box, colour] of [[this.marks.box, "rgba(255,255,255,.7)"], [this.marks.dragged, "#ffb400"]]) {
      if (!box) continue;
      pen.setLineDash([6 * ratio, 5 * ratio]);
      pen.lineWidth = 1.5 * ratio;
      pen.strokeStyle = colour;
      pen.strokeRect(x(box[0]), y(box[1]), (box[2] - box[0]) * this.scale, (box[3] - box[1]) * this.scale);
      pen.setLineDash([]);
    }
    for (const [left, top, positive] of this.marks.points) {
      pen.beginPath();
      pen.arc(x(left + 0.5), y(top + 0.5), 7 * ratio, 0, 7);
      pen.fillStyle = positive ? "#178a4c" : "#c8322b";
      pen.fill();
      pen.lineWidth = 2 * ratio;
      pen.strokeStyle = "white";
      pen.stroke();
      pen.beginPath();
      pen.moveTo(x(left + 0.5) - 3.5 * ratio, y(top + 0.5));
      pen.lineTo(x(left + 0.5) + 3.5 * ratio, y(top + 0.5));
      if (positive) {
        pen.moveTo(x(left + 0.5), y(top + 0.5) - 3.5 * ratio);
        pen.lineTo(x(left + 0.5), y(top + 0.5) + 3.5 * ratio);
      }
      pen.stroke();
    }
    const { brush } = this.marks;
    if (brush) {
      for (const [colour, wide] of [["rgba(0,0,0,.6)", 3], ["white", 1.2]]) {
        pen.beginPath();
        pen.arc(x(brush.x), y(brush.y), Math.max(0.5, brush.radius) * this.scale, 0, 7);
        pen.strokeStyle = colour;
        pen.lineWidth = wide * ratio;
        pen.stroke();
      }
    }
  }
}
