// The page play.md: digits drawn by the network pretrained:digits, in ONNX Runtime Web, on one thread of the reader's machine.
// Random numbers, levels and steps are those of ddpm_jax (noise.py, processes.py, samplers/), so that a seed means the same digits there.

const HERE = import.meta.url;
const COLUMNS = 5, NUM = 10;

// Random numbers: those of jax.random, from Threefry-2x32 with 20 rounds (Salmon et al. 2011)

/** A key and a counter, two uint32 each -> two uint32. */
function threefry(key, counter) {
  const keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bda];
  let a = (counter[0] + keys[0]) | 0, b = (counter[1] + keys[1]) | 0;
  for (let group = 1; group <= 5; group++) {
    for (const by of group % 2 ? [13, 15, 26, 6] : [17, 29, 16, 24]) {
      a = (a + b) | 0;
      b = ((b << by) | (b >>> (32 - by))) ^ a;
    }
    a = (a + keys[group % 3]) | 0;
    b = (b + keys[(group + 1) % 3] + group) | 0;
  }
  return [a, b];
}

/** A key made of another one and a number; `split` makes the same of the numbers 0 and 1. */
const foldIn = (key, number) => threefry(key, [0, number]);

/** The inverse of the error function, in single precision (Giles 2010). */
function inverseErf(x) {
  let w = -Math.log1p(-x * x);
  const inner = w < 5;
  w = inner ? w - 2.5 : Math.sqrt(w) - 3;
  const coefficients = inner
    ? [2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4, -1.25372503e-3, -4.17768164e-3, 0.246640727, 1.50140941]
    : [-2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3, -7.6224613e-3, 9.43887047e-3, 1.00167406, 2.83297682];
  return x * coefficients.reduce((sum, coefficient) => sum * w + coefficient);
}

/** `length` standard normal numbers of each key, one key's after the other's. */
function normals(keys, length) {
  const found = new Float32Array(keys.length * length);
  keys.forEach((key, n) => {
    for (let i = 0; i < length; i++) {
      const [a, b] = threefry(key, [0, i]);
      const share = ((a ^ b) >>> 9) * 2 ** -23; // in [0, 1), of which 2 share - 1 lies above -1
      found[n * length + i] = Math.SQRT2 * inverseErf(Math.fround(2 * share - (1 - 2 ** -24)));
    }
  });
  return found;
}

// One walk from noise to data

/** alpha and sigma of a time: x_t = alpha x_0 + sigma eps. */
function levelOf(path, time) {
  const [alpha, sigma] = [path.alphas, path.sigmas].map((table) => Math.fround(table[time - path.times[0]]));
  return { alpha, sigma, logSnr: Math.log(alpha / sigma) };
}

const each = (x, f) => x.map((_, i) => f(i)); // again of 32 bits

/** x_0 within its bound, and the eps that belongs to it, of what a network says that learned v = alpha eps - sigma x_0. */
function estimate(x_t, v, { alpha, sigma }, bound) {
  const x_0 = each(x_t, (i) => Math.max(-bound, Math.min(bound, alpha * x_t[i] - sigma * v[i])));
  return { x_0, eps: each(x_t, (i) => (x_t[i] - alpha * x_0[i]) / sigma) };
}

/** DDIM (Song et al. 2021, eq. 12 and 16); noise: with eta 0 not used. */
function ddimStep(hat, t, s, eta, noise) {
  if (eta === 0) return each(hat.x_0, (i) => s.alpha * hat.x_0[i] + s.sigma * hat.eps[i]);
  const kept = (t.alpha / s.alpha) * (s.sigma / t.sigma);
  const std = eta * s.sigma * Math.sqrt(1 - kept ** 2), rest = s.sigma * Math.sqrt(1 - eta ** 2 + (eta * kept) ** 2);
  return each(hat.x_0, (i) => s.alpha * hat.x_0[i] + rest * hat.eps[i] + std * noise[i]);
}

/** DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2); past: the estimate before this one, and the level that it was made at. */
function dpmppStep(x_t, hat, t, s, past) {
  const shrunk = (s.sigma / t.sigma) * (t.alpha / s.alpha);
  const ahead = past && s.sigma > 0 ? (s.logSnr - t.logSnr) / (t.logSnr - past.t.logSnr) / 2 : 0;
  const before = past ? past.x_0 : hat.x_0;
  return each(x_t, (i) => {
    const x_0 = hat.x_0[i] + ahead * (hat.x_0[i] - before[i]);
    return (s.sigma / t.sigma) * x_t[i] + s.alpha * (1 - shrunk) * x_0;
  });
}

/** What a walk starts from, and the noise of its steps by their number, for samples 0, 1, ... of a seed. */
export function noiseOf(about, seed, num) {
  const length = about.model.channels * about.model.image_size ** 2;
  const keys = Array.from({ length: num }, (_, n) => foldIn([0, seed], n));
  const ofSteps = keys.map((key) => foldIn(key, 1));
  return {
    x_T: normals(keys.map((key) => foldIn(key, 0)), length),
    ofStep: (k) => normals(ofSteps.map((key) => foldIn(key, k)), length),
  };
}

/** The states of a walk, noise first: {step, time, x_t, x_0}, x_0 what the network makes of x_t; at the end the last it made. */
export async function* walk({ about, predict }, { sampler, eta, steps, seed, labels }) {
  const times = about.grids[sampler][steps];
  const noise = noiseOf(about, seed, labels.length);
  let x_t = noise.x_T, past = null;
  for (let step = 0; step < steps; step++) {
    const [t, s] = [times[step], times[step + 1]].map((time) => levelOf(about.path, time));
    const hat = estimate(x_t, await predict(x_t, times[step], labels), t, about.sample.clip);
    yield { step, time: times[step], x_t, x_0: hat.x_0 };
    if (sampler === "dpmpp") x_t = dpmppStep(x_t, hat, t, s, past);
    else x_t = ddimStep(hat, t, s, eta, eta === 0 ? null : noise.ofStep(step));
    past = { x_0: hat.x_0, t };
  }
  yield { step: steps, time: times[steps], x_t, x_0: past.x_0 };
}

// The network

/** What the build says of the network: its process' tables, the samplers' grids, its classes. */
export async function fetchAbout() {
  const answer = await fetch(new URL("../play/digits.json", HERE));
  if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
  const about = await answer.json();
  if (about.output.prediction !== "v") throw new Error(`the network must have learned v; it learned ${about.output.prediction}`);
  return about;
}

/** The network in ONNX Runtime Web: predict(x_t, time, labels) -> its output. */
export async function loadNetwork(about) {
  const runtime = new URL("../npm/onnxruntime-web/dist/", HERE);
  const ort = await import(new URL("ort.wasm.min.mjs", runtime));
  ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
  ort.env.wasm.wasmPaths = runtime.href;
  const session = await ort.InferenceSession.create(new URL("../play/digits.onnx", HERE).href);
  const { channels, image_size: side } = about.model;
  const whole = (numbers) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [numbers.length]);
  const predict = async (x_t, time, labels) => {
    const image = new ort.Tensor("float32", x_t, [labels.length, channels, side, side]);
    const { output } = await session.run({ x_t: image, t: whole(labels.map(() => time)), labels: whole(labels) });
    return output.data;
  };
  return { about, predict };
}

// The page

/** Draw images beside each other, a pixel for a pixel; the page's style scales them up. */
function paint(canvas, x, { model: { image_size: side }, scaling: { mean, std } }) {
  const context = canvas.getContext("2d");
  canvas.width = COLUMNS * (side + 1) - 1;
  canvas.height = Math.ceil(x.length / side ** 2 / COLUMNS) * (side + 1) - 1;
  for (let n = 0; n < x.length / side ** 2; n++) {
    const image = context.createImageData(side, side);
    for (let i = 0; i < side ** 2; i++) {
      const value = x[n * side ** 2 + i] * std + mean; // rounded, and kept within 0..255, where it is stored
      image.data.set([value, value, value, 255], 4 * i);
    }
    context.putImageData(image, (n % COLUMNS) * (side + 1), Math.floor(n / COLUMNS) * (side + 1));
  }
}

async function start(root) {
  const part = (name) => root.querySelector(`[name="${name}"], .${name}`);
  const choice = part("choice"), moment = part("moment");
  const say = (text) => (part("status").textContent = text);
  const fail = (error) => say(`This does not work here: ${error.message}`);
  let about, network, states = [], turn = 0;

  /** What is asked for, by name of the fields; null while a field holds something else. */
  const asked = () => {
    if (!choice.checkValidity()) return null;
    const [sampler, eta] = part("sampler").value.split(" ");
    const only = part("label").value;
    const labels = Array.from({ length: NUM }, (_, n) => (only === "" ? n % about.class_names.length : Number(only)));
    return { sampler, eta: Number(eta), steps: part("steps").valueAsNumber, seed: part("seed").valueAsNumber, only, labels };
  };

  const show = ({ step, time, x_t, x_0 }, steps) => {
    const abar = levelOf(about.path, time).alpha ** 2;
    part("level").textContent = `step ${step} of ${steps}, ${time < 0 ? "the clean end" : `t = ${time}`}, alphas_cumprod = ${abar.toPrecision(2)}`;
    paint(part("x_t"), x_t, about);
    paint(part("x_0"), x_0, about);
    moment.max = steps;
    moment.value = step;
  };

  /** Whatever is being drawn stops; the noise of what is asked for is shown, and the command that draws the same. */
  const prepare = () => {
    turn++;
    const given = asked();
    if (!given) return null;
    const { sampler, eta, steps, seed, only } = given;
    part("count").value = steps;
    part("command").textContent = [
      `ddpm sample pretrained:digits --num ${NUM}`, only && `--labels ${about.class_names[only]}`, `--sampler ${sampler}`,
      sampler === "ddim" && `--eta ${eta}`, `--steps ${steps}`, `--seed ${seed}`,
    ].filter(Boolean).join(" ");
    states = [];
    moment.disabled = true;
    say("Nothing is drawn yet.");
    const { x_T } = noiseOf(about, seed, NUM);
    show({ step: 0, time: about.grids[sampler][steps][0], x_t: x_T, x_0: x_T.map(() => 0) }, steps);
    return given;
  };

  const draw = async () => {
    const given = prepare();
    if (!given) return;
    const mine = turn, { steps } = given;
    try {
      say("The network and its runtime are loaded …");
      const loaded = await (network ??= loadNetwork(about));
      const begun = performance.now();
      for await (const state of walk(loaded, given)) {
        if (mine !== turn) return;
        states.push(state);
        show(state, steps);
        say("");
        await new Promise(requestAnimationFrame); // or nothing is seen before the end
      }
      if (mine !== turn) return;
      say(`${NUM} digits in ${steps} steps: ${((performance.now() - begun) / 1000).toFixed(2)} s. Move the slider to see how they came about.`);
      moment.disabled = false;
    } catch (error) {
      network = undefined;
      fail(error);
    }
  };

  root.hidden = false;
  try {
    about = await fetchAbout();
  } catch (error) {
    return fail(error);
  }
  about.class_names.forEach((name, k) => part("label").add(new Option(`only ${name}`, k)));
  const offered = Object.keys(about.grids.ddim).map(Number);
  Object.assign(part("steps"), { min: Math.min(...offered), max: Math.max(...offered) });
  choice.addEventListener("input", prepare);
  choice.addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  part("next").addEventListener("click", () => {
    part("seed").stepUp();
    draw();
  });
  moment.addEventListener("input", () => show(states[moment.valueAsNumber], states.length - 1));
  prepare();
}

const root = document.getElementById("play");
if (root) start(root);
