// pages without a formula do not load MathJax, which is 2 MB
if (document.querySelector(".arithmatex")) {
  window.MathJax = {
    tex: {inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]]},
    options: {ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex", enableMenu: false},
  };
  const script = document.createElement("script");
  script.src = new URL("../npm/mathjax/es5/tex-svg.js", document.currentScript.src);
  document.head.append(script);
}
