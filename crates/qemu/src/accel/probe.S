# The last 256 bytes below 4 GiB, where a processor starts. Enters long mode with paging, works for a while, and says
# on port 0xf4 that it got there. Assemble: as --64 -o probe.o probe.S && objcopy -O binary -j .text probe.o probe.raw
    .set base, 0xffffff00
    .code16
start:
    cli
    data32 lgdt %cs:(gdt_pointer - start + 0xff00)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $(base + (protected - start))
    .code32
protected:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movl $0x1000, %edi
    movl $0x1000, %ecx
    rep stosl                       # four empty tables, 0x1000 to 0x5000
    movl $0x2003, 0x1000            # page map level 4, first entry
    movl $0x3003, 0x2000            # directory pointers: 0 to 1 GiB,
    movl $0x4003, 0x2018            #   3 to 4 GiB
    movl $0x83, 0x3000              # the first 2 MiB
    movl $0xffe00083, 0x4ff8        # the last 2 MiB below 4 GiB
    movl $0x1000, %eax
    movl %eax, %cr3
    movl $0x20, %eax                # physical address extension
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax                # long mode enable
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmpl $24, $(base + (long_mode - start))
    .code64
long_mode:
    movabsq $0x676f64776974, %rax
    movq %rax, 0x8000
    cmpq %rax, 0x8000
    jne stop
    movl $0x1000000, %ecx           # 16 million turns: instructions that are emulated one by one do not get through
work:
    addq %rax, 0x8000
    decl %ecx
    jnz work
    movb $0x2a, %al
    outb %al, $0xf4
stop:
    hlt
    jmp stop
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # 8: 32-bit code
    .quad 0x00cf93000000ffff        # 16: data
    .quad 0x00af9b000000ffff        # 24: 64-bit code
gdt_pointer:
    .word . - gdt - 1
    .long base + (gdt - start)
    .org 0xf0
    .code16
    jmp start                       # the reset vector
    .org 0x100
