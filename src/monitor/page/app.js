// Shows the sentence of the job and its document as it is.
'use strict';
const events = new EventSource('events');
const show = (event) => {
  const news = JSON.parse(event.data);
  if (!news.sentence) return;
  document.title = `${news.sentence.text} · sessionizer`;
  document.getElementById('sentence').textContent = news.sentence.text;
};
events.addEventListener('snapshot', (event) => {
  show(event);
  document.getElementById('document').textContent = JSON.stringify(JSON.parse(event.data), null, 2);
});
events.addEventListener('change', show);
