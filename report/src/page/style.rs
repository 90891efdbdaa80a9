//! The page's style: light and dark, no fonts and no pictures from elsewhere.

/// Of the whole page. The colour of `[fill="#1B1B1F"]` is the plots' ink.
pub(super) const CSS: &str = r##"
:root { color-scheme: light dark; --ink: #1B1B1F; --paper: #FFFFFF; --soft: #5B5F6B; --line: #D9DBE1; --good: #0A7A54; --bad: #B4281E; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #E8E8EC; --paper: #16181D; --soft: #A3A8B4; --line: #343842; --good: #3CC492; --bad: #FF8A7A; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 64px; max-width: 1120px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 10px; border-top: 1px solid var(--line); }
h2.run { font-size: 24px; margin-top: 64px; border-top-width: 3px; }
h3 { font-size: 15px; margin: 14px 0 2px; }
p { margin: 6px 0; max-width: 860px; }
.soft, .note { color: var(--soft); }
.warning { color: var(--bad); font-weight: 600; }
nav a { display: inline-block; margin-right: 16px; color: var(--soft); white-space: nowrap; }
a { color: inherit; }
table { border-collapse: collapse; margin: 10px 0; font-size: 14px; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums; }
td.figure, td.name { white-space: nowrap; }
th { vertical-align: bottom; }
.reached { color: var(--good); font-weight: 600; }
.missed { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 10px 24px; }
figure { margin: 0; }
figure svg { max-width: 100%; height: auto; display: block; }
.legend { margin: 4px 0; max-width: none; }
.key { display: inline-block; margin-right: 18px; white-space: nowrap; font-size: 14px; }
.key svg { margin-right: 6px; }
figure svg text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg text[fill="#1B1B1F"] { fill: var(--ink); }
svg [stroke="#1B1B1F"] { stroke: var(--ink); }
svg [fill="#1B1B1F"]:not(text) { fill: var(--ink); }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"##;
