#include "textflag.h"

// func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	MOVL DX, edx+20(FP)
	RET

// The SFENCE is part of each function: it orders only the write-backs of its own
// processor, and between two calls a goroutine may move to another.

// func flushCLWB(p unsafe.Pointer, n, line uintptr)
TEXT ·flushCLWB(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), CX
	MOVQ line+16(FP), DX
	ADDQ AX, CX
	MOVQ DX, BX
	NEGQ BX
	ANDQ BX, AX
clwb:
	CMPQ AX, CX
	JAE  clwbDone
	CLWB (AX)
	ADDQ DX, AX
	JMP  clwb
clwbDone:
	SFENCE
	RET

// func flushCLFLUSHOPT(p unsafe.Pointer, n, line uintptr)
TEXT ·flushCLFLUSHOPT(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), CX
	MOVQ line+16(FP), DX
	ADDQ AX, CX
	MOVQ DX, BX
	NEGQ BX
	ANDQ BX, AX
opt:
	CMPQ AX, CX
	JAE  optDone
	CLFLUSHOPT (AX)
	ADDQ DX, AX
	JMP  opt
optDone:
	SFENCE
	RET

// func flushCLFLUSH(p unsafe.Pointer, n, line uintptr)
TEXT ·flushCLFLUSH(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), AX
	MOVQ n+8(FP), CX
	MOVQ line+16(FP), DX
	ADDQ AX, CX
	MOVQ DX, BX
	NEGQ BX
	ANDQ BX, AX
plain:
	CMPQ AX, CX
	JAE  plainDone
	CLFLUSH (AX)
	ADDQ DX, AX
	JMP  plain
plainDone:
	SFENCE
	RET
