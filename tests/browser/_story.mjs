import { World, cpu } from "./job.js"; import { launch, open, until } from "./browser.js";
import { mkdir } from "node:fs/promises"; import { setTimeout as sleep } from "node:timers/promises";
const OUT="/tmp/shots"; await mkdir(OUT,{recursive:true});
const w = new World(); await w.start(); const b = await launch();
console.log(w.dir, w.url);
const pages = []; const openS = (o) => open(b, w.url, o);
import { readFile } from "node:fs/promises"; import { PAGE, pageFiles, CSP } from "./player.js";
const files = await pageFiles();
const T={html:"text/html; charset=utf-8",js:"text/javascript",css:"text/css"};
const openR = async (o) => { const context = await b.newContext(o); const page = await context.newPage(); const complaints=[]; page.on("pageerror",e=>complaints.push(String(e))); page.on("console",m=>{ if(m.type()==="error"&&!/net::ERR_|503|404/.test(m.text())) complaints.push(m.text()); });
 await page.route(/\/([a-z]+\.(js|css))?$/, async (r)=>{ const n=new URL(r.request().url()).pathname.slice(1)||"index.html"; if(!files.includes(n)) return r.continue(); await r.fulfill({status:200,contentType:T[n.split(".").pop()],headers:{"content-security-policy":CSP},body:await readFile(new URL(n,PAGE))}); });
 await page.goto(w.url); return {page,context,complaints}; };
const shots = async (name) => { for (const {page, tag} of pages) { await page.screenshot({path:`${OUT}/${name}-${tag}.png`, fullPage: true}); } console.log(new Date().toISOString(), name, await pages[0].page.title()); };
const says = (re, ms=120000) => until(String(re), () => pages[0].page.title(), (t)=>re.test(t), ms).catch((e)=>console.log("!!", e.message));
try {
 w.env.KAFKA_TOPIC="web-events"; await w.makeTopic(4); w.env.KAFKA_TOPIC="slow"; await w.makeTopic(1); w.env.KAFKA_TOPIC="web-events,slow";
 let job = w.job("-w","2");
 const produce = (topic, ...a) => { const k=w.env.KAFKA_TOPIC; w.env.KAFKA_TOPIC=topic; const p=w.produce(...a); w.env.KAFKA_TOPIC=k; return p; };
 await until("listen", ()=>fetch(w.url+"livez").then(r=>r.status,()=>0), s=>s>0, 120000);
 for (const [tag,width,colorScheme] of [["1280-light",1280,"light"],["1280-dark",1280,"dark"],["360-light",360,"light"],["360-dark",360,"dark"]]) { const o=await openS({viewport:{width,height:800},colorScheme}); pages.push({...o,tag}); await o.page.waitForSelector("#main:not([hidden])",{timeout:60000}); }
 await sleep(12000); await shots("01-empty");
 let live = produce("web-events","--rate","300","--bad","0.01","--late","0.002","--late-by","1m");
 await sleep(45000); await shots("02-live");
 const many = Array.from({length:5000},(_,i)=>["--host",`h${i}.example`]).flat();
 let hosts = produce("web-events","--rate","1000","--visitors","20000",...many); await sleep(25000); await hosts.end(); 
 for (const h of ["<script>alert(1)</script>", `${"a".repeat(249)}.com`, "مثال.إختبار", "\u202Egnp.evil\u202C"]) { const k=w.env.KAFKA_TOPIC; w.env.KAFKA_TOPIC="web-events"; await w.visit(h, 60); w.env.KAFKA_TOPIC=k; }
 await sleep(12000); await shots("03-hosts");
 let slow = produce("slow","--rate","5","--historical","20m","--density","5"); await says(/^held back/); await sleep(3000); await shots("04-held"); await slow.end(); await sleep(8000);
 await w.services("postgres","stop"); await says(/^waiting for Postgres/); await sleep(8000); await shots("05-postgres"); await w.services("postgres","start"); await says(/^(up to date|catching)/); 
 await w.services("kafka","kill"); await says(/^waiting for Kafka/); await sleep(5000); await shots("06-kafka"); await w.services("kafka","start"); await says(/^(up to date|catching|no new)/);
 await sleep(5000); await job.end("SIGKILL"); await says(/^lost/); await sleep(4000); await shots("07-killed");
 await live.end(); 
 const back = produce("web-events","--historical","2d","--number","1500000"); await back.ended; live = produce("web-events","--rate","300");
 job = w.job("-w","2"); await says(/^(replaying|loading|catching)/); await shots("08-restarted"); await says(/^catching/); await shots("09-catching"); 
 await says(/^(up to date|no new)/,240000); await sleep(5000); await shots("10-after");
 await job.end("SIGTERM"); await says(/job (has|was)/); await shots("11-stopped");
 console.log("complaints", pages.map(p=>p.complaints));
} finally { await b.close(); if (process.env.KEEP) console.log("kept", w.dir); else await w.stop(); }
