// Charts of the tables that the page has anyway; without this file the tables stand there.
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

const HEIGHT = 172;
const drawn = new Map(); // panel → uPlot

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const units = {
  usd: (v) => (v && Math.abs(v) < 1 ? `$${v.toFixed(2)}` : `$${v.toLocaleString('en', { maximumFractionDigits: 2 })}`),
  tokens: (v) => (v >= 1e9 ? `${+(v / 1e9).toFixed(2)}B` : v >= 1e6 ? `${+(v / 1e6).toFixed(2)}M` : v >= 1e3 ? `${+(v / 1e3).toFixed(1)}k` : `${v}`),
  ms: (v) => (v >= 60000 ? `${+(v / 60000).toFixed(1)}m` : v >= 1000 ? `${+(v / 1000).toFixed(1)} s` : `${v} ms`),
  share: (v) => `${+(v * 100).toFixed(1)} %`,
  count: (v) => v.toLocaleString('en'),
};

function read(panel) {
  const rows = $$('tbody tr', panel);
  const colours = $$('.legend [data-colour]', panel).map((item) => item.dataset.colour);
  const cells = rows.map((row) => $$('td', row).map((cell) => (cell.dataset.v === undefined ? null : +cell.dataset.v)));
  return {
    labels: rows.map((row) => $('th', row).textContent),
    running: rows.findIndex((row) => row.hasAttribute('data-running')),
    series: colours.map((colour, place) => ({ colour, values: cells.map((row) => row[place]) })),
    text: rows.map((row) => $$('td', row).map((cell) => cell.textContent)),
  };
}

// Bars stand upon each other: each series is drawn as high as all up to it, the highest first.
function stacked(series) {
  const sums = [];
  let below = null;
  for (const one of series) {
    below = one.values.map((value, place) => (value === null ? null : value + (below?.[place] ?? 0)));
    sums.push(below);
  }
  return sums;
}

// Points with no neighbour: no line leads through them.
function lonely(values) {
  return values.flatMap((value, at) => (value !== null && values[at - 1] == null && values[at + 1] == null ? [at] : []));
}

function lighter(running, count) {
  return (plot) => {
    if (running < 0) return;
    const { left, top, width, height } = plot.bbox;
    const wide = width / count;
    plot.ctx.save();
    plot.ctx.globalAlpha = 0.55;
    plot.ctx.fillStyle = style('surface');
    plot.ctx.fillRect(left + running * wide, top, wide, height - 1);
    plot.ctx.restore();
  };
}

function draw(panel) {
  const { labels, running, series, text } = read(panel);
  const bars = panel.dataset.kind === 'bars';
  const value = units[panel.dataset.unit];
  const place = $('.u', panel);
  const grid = { stroke: style('line'), width: 1 };
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: style('text-3'), font, grid, ticks: { show: false } };
  const columns = bars ? stacked(series) : series.map((one) => one.values);
  const order = series.map((_, number) => number);
  if (bars) order.reverse();
  const dashes = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
  const legend = $$('.legend [data-colour] b', panel);
  const at = $('.legend .at', panel);
  const options = {
    width: place.clientWidth,
    height: HEIGHT,
    padding: [8, 4, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { show: !bars }, drag: { x: false, y: false } },
    scales: {
      x: { time: false, range: [-0.5, labels.length - 0.5] },
      y: { range: (_, low, high) => [0, panel.dataset.unit === 'share' && high > 0.5 ? 1 : (high || 1) * 1.06] },
    },
    axes: [
      { ...axis, grid: { show: false }, size: 24, gap: 4, space: 64, incrs: [1, 2, 3, 5, 7, 10, 14, 30, 60], values: (_, splits) => splits.map((split) => labels[split] ?? '') },
      { ...axis, size: 52, gap: 6, space: 36, values: (_, splits) => splits.map(value) },
    ],
    series: [
      {},
      ...order.map((number) => ({
        stroke: style(series[number].colour),
        fill: bars ? style(series[number].colour) : undefined,
        width: bars ? 0 : 2,
        dash: bars ? [] : dashes[number],
        points: { show: false, size: 5, filter: () => (bars ? null : lonely(columns[number])) },
        spanGaps: false,
        paths: bars ? uPlot.paths.bars({ size: [0.8, 40], gap: 1 }) : undefined,
      })),
    ],
    hooks: {
      draw: [lighter(running, labels.length)],
      setCursor: [(plot) => {
        const here = plot.cursor.left >= 0 ? plot.cursor.idx : null;
        at.textContent = here == null ? '' : labels[here];
        legend.forEach((item, number) => { item.textContent = here == null ? '' : text[here][number]; });
      }],
    },
  };
  drawn.get(panel)?.destroy();
  drawn.set(panel, new uPlot(options, [labels.map((_, number) => number), ...order.map((number) => columns[number])], place));
}

function show(panel, chart) {
  const box = $('.chart', panel);
  if (!box) return;
  box.hidden = !chart;
  $('.tall', panel).hidden = chart;
  const toggle = $('[data-toggle]', panel);
  toggle.textContent = chart ? 'table' : 'chart';
  if (chart) draw(panel);
}

const panels = $$('.fig');
if (window.uPlot) {
  for (const panel of panels) {
    show(panel, !panel.hasAttribute('data-table'));
    $('[data-toggle]', panel)?.addEventListener('click', (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      show(panel, $('.chart', panel).hidden);
    });
  }
  matchMedia('(prefers-color-scheme:dark)').addEventListener('change', () => drawn.forEach((_, panel) => draw(panel)));
  let wide = innerWidth;
  addEventListener('resize', () => {
    if (wide === innerWidth) return;
    wide = innerWidth;
    drawn.forEach((plot, panel) => plot.setSize({ width: $('.u', panel).clientWidth || plot.width, height: HEIGHT }));
  });
}
