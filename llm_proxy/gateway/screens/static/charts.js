// What a bar stands for, in the legend under it, while the mouse is over it. Without this its <title> says so.
for (const chart of document.querySelectorAll('[data-chart]')) {
  const figures = [...chart.querySelectorAll('.legend b')];
  const at = chart.querySelector('.legend .at');
  const sums = figures.map((one) => one.textContent);
  const tell = (bar) => {
    const told = bar ? bar.dataset.is.split('|') : sums;
    figures.forEach((one, place) => { one.textContent = told[place]; });
    at.textContent = bar ? bar.dataset.at : '';
  };
  chart.addEventListener('pointerover', (event) => tell(event.target.closest('.bar')));
  chart.addEventListener('pointerleave', () => tell(null));
}
