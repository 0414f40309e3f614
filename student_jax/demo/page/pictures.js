// Pictures as arrays, with the arithmetic of student_jax.inference, so that the page's results are
// those of the Python program. A picture is { data: Float32Array [h w 3] in [0, 1], height, width }.

const MIN_TOKENS = 4;

/** Python's round: halves to the even neighbour. */
function round(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 ? floor + 1 : floor;
}

/** Bytes [h w 4] of a canvas to a picture; transparent parts become white. */
export function fromBytes({ data, height, width }) {
  const result = new Float32Array(height * width * 3);
  for (let i = 0, j = 0; i < result.length; j += 4) {
    const opacity = data[j + 3];
    for (let c = 0; c < 3; c++) {
      const value = opacity === 255 ? data[j + c] : Math.round((data[j + c] * opacity + 255 * (255 - opacity)) / 255);
      result[i++] = value / 255;
    }
  }
  return { data: result, height, width };
}

/** A picture to bytes [h w 4]. */
export function toBytes({ data, height, width }) {
  const result = new Uint8ClampedArray(height * width * 4);
  for (let i = 0, j = 0; i < data.length; j += 4) {
    // A clamped array rounds as NumPy's rint does.
    for (let c = 0; c < 3; c++) result[j + c] = data[i++] * 255;
    result[j + 3] = 255;
  }
  return { data: result, height, width };
}

function lanczos(x) {
  if (x === 0) return 1;
  if (x <= -3 || x >= 3) return 0;
  const t = Math.PI * x;
  return (3 * Math.sin(t) * Math.sin(t / 3)) / (t * t);
}

/** For each entry of a resized axis: its first source entry, and the weights from there on. */
function taps(length, newLength) {
  const scale = length / newLength, filterScale = Math.max(scale, 1), support = 3 * filterScale;
  return Array.from({ length: newLength }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(length, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, k) => lanczos((first + k - centre + 0.5) / filterScale));
    const total = weights.reduce((a, b) => a + b, 0);
    return [first, Float64Array.from(weights, w => w / total)];
  });
}

/** Resize as Pillow does with its Lanczos filter: columns, then rows. */
export function resize(picture, newHeight, newWidth) {
  const { data, height, width } = picture;
  if (newHeight === height && newWidth === width) return picture;
  const rows = new Float32Array(height * newWidth * 3);
  const columns = taps(width, newWidth);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++) {
      const [first, weights] = columns[x];
      let red = 0, green = 0, blue = 0;
      for (let k = 0, i = (y * width + first) * 3; k < weights.length; k++, i += 3) {
        red += weights[k] * data[i];
        green += weights[k] * data[i + 1];
        blue += weights[k] * data[i + 2];
      }
      rows.set([red, green, blue], (y * newWidth + x) * 3);
    }
  }
  const result = new Float32Array(newHeight * newWidth * 3);
  const line = new Float64Array(newWidth * 3);
  taps(height, newHeight).forEach(([first, weights], y) => {
    line.fill(0);
    weights.forEach((weight, k) => {
      const start = (first + k) * line.length;
      for (let i = 0; i < line.length; i++) line[i] += weight * rows[start + i];
    });
    for (let i = 0; i < line.length; i++) result[y * line.length + i] = Math.min(1, Math.max(0, line[i]));
  });
  return { data: result, height: newHeight, width: newWidth };
}

/** Reduce larger pictures to this shorter side. */
export function shrink(picture, side) {
  const scale = side / Math.min(picture.height, picture.width);
  if (scale >= 1) return picture;
  return resize(picture, Math.max(1, round(picture.height * scale)), Math.max(1, round(picture.width * scale)));
}

function nearestBucket(side, stride) {
  const bits = side > 1 ? Math.floor(Math.log2(side - 1)) + 1 : 0;
  const step = stride * Math.max(1, Math.floor(2 ** Math.max(0, bits - 3) / stride));
  return Math.max(MIN_TOKENS * stride, round(side / step) * step);
}

/** A style at the scale that the student has learned. */
export function fittedStyle(picture, { style_scale: styleScale, style_stride: stride }) {
  const scale = Math.min(1, styleScale / Math.min(picture.height, picture.width));
  let [height, width] = [picture.height, picture.width].map(side => Math.max(1, round(side * scale)));
  [height, width] = [Math.min(height, 4 * width), Math.min(width, 4 * height)];
  return resize(picture, nearestBucket(height, stride), nearestBucket(width, stride));
}

/** A content at the size at which its strokes come out stroke times as large. */
export function workingSize({ height, width }, stroke) {
  return [height, width].map(side => Math.max(1, round(side / stroke)));
}

/** The content with a share of the prediction's change, of all colours or of the luminance alone. */
export function mixed(content, prediction, strength, preserveColour) {
  const luma = [0.299, 0.587, 0.114];
  const data = new Float32Array(content.data.length);
  for (let i = 0; i < data.length; i += 3) {
    let grey = 0;
    for (let c = 0; c < 3; c++) grey += luma[c] * (prediction.data[i + c] - content.data[i + c]);
    for (let c = 0; c < 3; c++) {
      const change = preserveColour ? grey : prediction.data[i + c] - content.data[i + c];
      data[i + c] = Math.min(1, Math.max(0, content.data[i + c] + strength * change));
    }
  }
  return { data, height: content.height, width: content.width };
}
